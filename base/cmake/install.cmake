# What another project gets from find_package(kvcal): the solver, the codebook reader and writer, the codec; with COMPONENTS
# tokenizer also the tokenizers, which need more libraries.
include(CMakePackageConfigHelpers)

set(kvcal_public base kmeans formats tokenizer codec)
set(kvcal_public_folders base kmeans formats cuda)
foreach(name IN LISTS kvcal_public)
  install(TARGETS kvcal_${name} EXPORT kvcal-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
endforeach()
install(TARGETS kvcal_cuda kvcal_cuda_shared EXPORT kvcal-targets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET kvcal_torch)
  install(TARGETS kvcal_torch LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
foreach(folder IN LISTS kvcal_public_folders)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/${folder}/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/kvcal/${folder}
          FILES_MATCHING PATTERN "*.h" PATTERN "cmake" EXCLUDE PATTERN "internal" EXCLUDE PATTERN "torch_*" EXCLUDE)
endforeach()
install(CODE "execute_process(COMMAND \"${CMAKE_COMMAND}\" \"-DFOLDER=\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_INCLUDEDIR}\"
  -P \"${CMAKE_CURRENT_LIST_DIR}/prefix_includes.cmake\" COMMAND_ERROR_IS_FATAL ANY)")
if(TARGET kvcal)
  install(TARGETS kvcal RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(FILES ${PROJECT_BINARY_DIR}/manual/kvcal.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
  install(FILES ${PROJECT_BINARY_DIR}/manual/kvcal.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME kvcal)
  install(FILES ${PROJECT_BINARY_DIR}/manual/_kvcal DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
  install(FILES ${PROJECT_BINARY_DIR}/manual/kvcal.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
  include(${CMAKE_CURRENT_LIST_DIR}/install_torch.cmake)
endif()

install(EXPORT kvcal-targets NAMESPACE kvcal:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kvcal)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/kvcal-config.cmake.in ${PROJECT_BINARY_DIR}/kvcal-config.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kvcal)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/kvcal-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/kvcal-config.cmake ${PROJECT_BINARY_DIR}/kvcal-config-version.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kvcal)
