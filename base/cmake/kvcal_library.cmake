# A folder is a namespace is a target. kvcal_library(NAME FOLDER f SOURCES ... USES ... [ROOMS ...]) makes the target kvcal_NAME
# (alias kvcal::NAME) from a folder, which sees only the headers of the folders it names: each target exports a directory that
# holds nothing but links to its own folder's contents, so that an include that is not declared does not compile. ROOMS are the
# subfolders that are targets of their own.
function(kvcal_library name)
  cmake_parse_arguments(ARG "" "FOLDER" "SOURCES;USES;PRIVATE;ROOMS" ${ARGN})
  set(target kvcal_${name})
  add_library(${target} STATIC ${ARG_SOURCES})
  add_library(kvcal::${name} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name})

  set(view ${PROJECT_BINARY_DIR}/include/${name})
  file(REMOVE_RECURSE ${view})
  file(MAKE_DIRECTORY ${view}/${ARG_FOLDER})
  file(GLOB headers CONFIGURE_DEPENDS LIST_DIRECTORIES true RELATIVE ${PROJECT_SOURCE_DIR}/${ARG_FOLDER}
       ${PROJECT_SOURCE_DIR}/${ARG_FOLDER}/*)
  foreach(entry IN LISTS headers)
    if(NOT entry IN_LIST ARG_ROOMS)
      file(CREATE_LINK ${PROJECT_SOURCE_DIR}/${ARG_FOLDER}/${entry} ${view}/${ARG_FOLDER}/${entry} SYMBOLIC)
    endif()
  endforeach()
  target_include_directories(${target} PUBLIC
    $<BUILD_INTERFACE:${view}>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_link_libraries(${target} PUBLIC ${ARG_USES} PRIVATE ${ARG_PRIVATE})
  kvcal_compile_options(${target})
endfunction()

# Warnings and sanitizers, the same for libraries, programs and tests.
function(kvcal_compile_options target)
  # Of C++: nvcc has options of its own (cuda/kernels/nvcc.cmake). The same arithmetic on every machine and compiler: no fused
  # multiply-add unless the code asks for one.
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wconversion;-Wno-sign-conversion;-Wnon-virtual-dtor;-Wold-style-cast;-ffp-contract=off>")
  # g++ 12 at -O3 sees overlaps in std::string where there are none (its bug 105651, mended in 13).
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
  endif()
  if(KVCAL_WERROR)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
  endif()
  # Asserts of the standard library stop at what no sanitizer sees.
  if(KVCAL_SANITIZE)
    target_compile_options(${target} PRIVATE
      "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined;-fno-sanitize-recover=undefined;-fno-omit-frame-pointer>")
    target_compile_definitions(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:_GLIBCXX_ASSERTIONS>)
    target_link_options(${target} PUBLIC -fsanitize=address,undefined)
  endif()
endfunction()
