# kvcal_torch: the operators torch.ops.kvcal.* (torch_ops.cpp), a library for torch.ops.load_library(). It is built where there
# is a libtorch: the project's kvcal::torch (base/cmake/torch.cmake), else what KVCAL_TORCH names, a folder that holds include/
# and lib/. find_package(Torch) would demand a CUDA toolkit wherever the wheel was built for one.
set(KVCAL_TORCH "" CACHE PATH "A libtorch, for the PyTorch operators: the folder that holds its include/ and lib/")
if(NOT TARGET kvcal::torch AND NOT KVCAL_TORCH)
  return()
endif()
if(NOT EXISTS "${KVCAL_TORCH}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "No libtorch at KVCAL_TORCH='${KVCAL_TORCH}': it has no lib/libtorch_cpu.so. Name a wheel's `torch` folder, "
                      "which `python -c 'import torch; print(torch.__path__[0])'` prints.")
endif()
file(REAL_PATH "${KVCAL_TORCH}" kvcal_torch_folder)
# The wheel's own folder, and those of its sibling packages that its libraries need.
file(GLOB kvcal_torch_rpath ${kvcal_torch_folder}/../nvidia/*/lib)
list(PREPEND kvcal_torch_rpath ${kvcal_torch_folder}/lib)

add_library(kvcal_torch MODULE torch_arguments.cpp torch_ops.cpp)
set_target_properties(kvcal_torch PROPERTIES
  CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
  BUILD_RPATH "${kvcal_torch_rpath}" INSTALL_RPATH "${kvcal_torch_rpath}")
if(COMMAND kvcal_compile_options)
  kvcal_compile_options(kvcal_torch)
else()
  target_compile_options(kvcal_torch PRIVATE -Wall -Wextra)
endif()
target_link_libraries(kvcal_torch PRIVATE kvcal_cuda)
# Another library of the process may bring another version of the C API.
target_link_options(kvcal_torch PRIVATE LINKER:--exclude-libs,ALL)
if(TARGET kvcal::torch)
  target_link_libraries(kvcal_torch PRIVATE kvcal::torch)
else()
  target_include_directories(kvcal_torch SYSTEM PRIVATE
    ${kvcal_torch_folder}/include ${kvcal_torch_folder}/include/torch/csrc/api/include)
  target_link_libraries(kvcal_torch PRIVATE ${kvcal_torch_folder}/lib/libtorch_cpu.so ${kvcal_torch_folder}/lib/libc10.so)
  foreach(folder IN LISTS kvcal_torch_rpath)
    target_link_options(kvcal_torch PRIVATE LINKER:-rpath-link,${folder})
  endforeach()
endif()
# PyTorch's current stream is libc10_cuda's to know. Without it there are only CPU tensors.
if(KVCAL_CUDA AND EXISTS "${kvcal_torch_folder}/lib/libc10_cuda.so")
  target_compile_definitions(kvcal_torch PRIVATE KVCAL_WITH_CUDA)
  target_include_directories(kvcal_torch SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(kvcal_torch PRIVATE ${kvcal_torch_folder}/lib/libc10_cuda.so CUDA::cudart_static)
endif()
