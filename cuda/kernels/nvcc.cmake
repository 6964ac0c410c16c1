# nvcc, for KVCAL_CUDA: for sm_80 and sm_90 unless CMAKE_CUDA_ARCHITECTURES names others.
if(CMAKE_CUDA_FLAGS MATCHES "use_fast_math|ftz=true")
  message(FATAL_ERROR "CMAKE_CUDA_FLAGS is '${CMAKE_CUDA_FLAGS}': the kernels must round as the host does, without fast math.")
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "KVCAL_CUDA is on, but there is no nvcc: put CUDA 12.4 or later on PATH, or take "
                      "nvcc from PyPI (kvcal's ./setup.sh --cuda --build cuda does).")
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 90)
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
# Debian's CMake 3.25.1 does not yet know that nvcc speaks C++20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set_target_properties(kvcal_kernel_objects PROPERTIES
  CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
target_compile_options(kvcal_kernel_objects PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr --expt-extended-lambda -fmad=false -Xcompiler=-Wall,-Wextra,-ffp-contract=off>)
if(KVCAL_WERROR)
  target_compile_options(kvcal_kernel_objects PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings -Xcompiler=-Werror>)
endif()
