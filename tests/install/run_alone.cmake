# Builds a copy of cuda/ by itself, as an engine that vendors it does, and links a C program with nothing but its shared library.
file(REMOVE_RECURSE ${WORK})
file(COPY ${SOURCE}/cuda DESTINATION ${WORK})
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()
run(${CMAKE_COMMAND} -S ${WORK}/cuda -B ${WORK}/build -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_BUILD_TYPE=Debug)
run(${CMAKE_COMMAND} --build ${WORK}/build)
run(cc -std=c99 -Wall -Wextra -Wpedantic -Werror -I${WORK} ${SOURCE}/tests/cuda/c_program/append_and_read.c -o ${WORK}/append_and_read
    -L${WORK}/build/kernels -Wl,-rpath,${WORK}/build/kernels -lkvcal_cuda -lm)
execute_process(COMMAND ${WORK}/append_and_read ${SOURCE}/README.md RESULT_VARIABLE status ERROR_VARIABLE said)
if(NOT status EQUAL 1 OR NOT said MATCHES "is no flat codebook")
  message(FATAL_ERROR "given a file that is no codebook, the program ends with ${status}: ${said}")
endif()
