# Where an installed program finds libtorch. One that setup.sh put into this folder may go with it, so the libraries that
# libtorch_cpu.so needs of it are installed, too, in LIBDIR/kvcal; your own (--torch) stays where it is.
file(REAL_PATH ${CMAKE_INSTALL_BINDIR} bin_folder BASE_DIRECTORY /prefix)
file(REAL_PATH ${CMAKE_INSTALL_LIBDIR}/kvcal torch_copies BASE_DIRECTORY /prefix)
file(RELATIVE_PATH to_copies ${bin_folder} ${torch_copies})
cmake_path(IS_PREFIX PROJECT_SOURCE_DIR "${torch_folder}" NORMALIZE installs_torch)
if(installs_torch)
  set(torch_run_path "$ORIGIN/${to_copies}")
  install(CODE "set(torch_folders \"${torch_rpath}\")
set(torch_destination \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/kvcal\")")
  install(CODE [[
file(GET_RUNTIME_DEPENDENCIES LIBRARIES $<TARGET_FILE:kvcal::torch> RESOLVED_DEPENDENCIES_VAR needed
     UNRESOLVED_DEPENDENCIES_VAR missing DIRECTORIES ${torch_folders} POST_EXCLUDE_REGEXES "^/lib" "^/usr")
foreach(library IN ITEMS $<TARGET_FILE:kvcal::torch> LISTS needed)
  file(INSTALL "${library}" DESTINATION "${torch_destination}" FOLLOW_SYMLINK_CHAIN)
endforeach()
]])
else()
  set(torch_run_path ${torch_rpath})
endif()
# In a wheel the program lies in site-packages/kvcal/bin, and what pip installed of torch and NVIDIA beside kvcal.
get_filename_component(packages ${torch_folder} DIRECTORY)
foreach(folder IN LISTS torch_rpath)
  file(RELATIVE_PATH of_packages ${packages} ${folder})
  if(NOT of_packages MATCHES "^[.][.]")
    list(APPEND torch_run_path "$ORIGIN/../../${of_packages}")
  endif()
endforeach()
set_target_properties(kvcal PROPERTIES INSTALL_RPATH "${torch_run_path}")
