# The imported target kvcal::torch: libtorch's CPU libraries alone. find_package(Torch) would demand a CUDA toolkit wherever
# the wheel was built for one.
#
# KVCAL_TORCH names a libtorch: a folder that holds include/ and lib/ (a wheel's `torch` folder, or the unpacked libtorch
# archive). Its default is the one that setup.sh installed, or was given: the link .deps/torch.
set(KVCAL_TORCH "${PROJECT_SOURCE_DIR}/.deps/torch" CACHE PATH "A libtorch: the folder that holds its include/ and lib/")
if(NOT EXISTS "${KVCAL_TORCH}/lib/libtorch_cpu.so")
  message(FATAL_ERROR
    "No libtorch at KVCAL_TORCH='${KVCAL_TORCH}': it has no lib/libtorch_cpu.so. Run ./setup.sh, which installs one, or name "
    "your own with -DKVCAL_TORCH=/path/to/torch; -DKVCAL_PROGRAM=OFF builds only what needs no libtorch.")
endif()
# The real place: the wheel's sibling packages lie beside it.
file(REAL_PATH "${KVCAL_TORCH}" torch_folder)
# Our compilers use the C++11 ABI of the standard library; with an old pre-C++11-ABI libtorch only the link would fail.
file(STRINGS "${torch_folder}/lib/libc10.so" torch_cxx11_symbols REGEX "__cxx11" LIMIT_COUNT 1)
if(NOT torch_cxx11_symbols)
  message(FATAL_ERROR
    "The libtorch at '${torch_folder}' is built for the pre-C++11 ABI. Take one built for the C++11 ABI (every one since 2.7).")
endif()

add_library(kvcal::c10 SHARED IMPORTED)
set_target_properties(kvcal::c10 PROPERTIES IMPORTED_LOCATION ${torch_folder}/lib/libc10.so)
add_library(kvcal::torch SHARED IMPORTED)
set_target_properties(kvcal::torch PROPERTIES
  IMPORTED_LOCATION ${torch_folder}/lib/libtorch_cpu.so
  INTERFACE_LINK_LIBRARIES kvcal::c10)
# As system headers: their warnings are not ours.
target_include_directories(kvcal::torch SYSTEM INTERFACE
  ${torch_folder}/include ${torch_folder}/include/torch/csrc/api/include)

# The wheel's libtorch_cpu needs libraries that lie in sibling packages (nvidia/*/lib).
file(GLOB torch_siblings ${torch_folder}/../nvidia/*/lib)
set(torch_rpath ${torch_folder}/lib)
foreach(folder IN LISTS torch_siblings)
  get_filename_component(folder ${folder} REALPATH)
  list(APPEND torch_rpath ${folder})
endforeach()
list(APPEND CMAKE_BUILD_RPATH ${torch_rpath})
foreach(folder IN LISTS torch_rpath)
  target_link_options(kvcal::torch INTERFACE LINKER:-rpath-link,${folder})
endforeach()
