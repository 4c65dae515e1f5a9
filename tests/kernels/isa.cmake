# What concerns the ISAs as such: the errors of simd.h's functions, and what the objects export.
mamba_add_test(test_simd LABELS kernels)
foreach(isa IN LISTS MAMBA_ISAS)
  add_library(simd_functions_${isa} OBJECT simd_functions.cpp)
  target_compile_options(simd_functions_${isa} PRIVATE ${MAMBA_ISA_FLAGS_${isa}})
  target_compile_definitions(simd_functions_${isa} PRIVATE MAMBA_ISA=${isa})
  target_link_libraries(simd_functions_${isa} PRIVATE mamba_options)
  target_sources(test_simd PRIVATE $<TARGET_OBJECTS:simd_functions_${isa}>)
endforeach()

# Sanitizers add symbols of their own.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
set(symbols ${CMAKE_CURRENT_SOURCE_DIR}/test_symbols.py)
add_test(NAME test_symbols_self COMMAND Python3::Interpreter ${symbols} --self-test)
if(NOT MAMBA_SANITIZE)
  add_test(NAME test_symbols COMMAND Python3::Interpreter ${symbols} ${PROJECT_BINARY_DIR})
endif()
