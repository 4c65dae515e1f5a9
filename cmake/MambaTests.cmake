# mamba_add_test(path [LABELS ...]): tests/<path>.cpp becomes the executable and ctest entry <name>.
find_package(GTest REQUIRED)
find_package(Threads REQUIRED)

function(mamba_add_test path)
  cmake_parse_arguments(arg "" "" "LABELS;LIBS" ${ARGN})
  get_filename_component(name ${path} NAME)
  add_executable(${name} ${CMAKE_CURRENT_SOURCE_DIR}/${path}.cpp)
  target_link_libraries(${name} PRIVATE mamba mamba_options mamba_test_support ${arg_LIBS}
    GTest::gtest GTest::gtest_main nlohmann_json::nlohmann_json)
  target_compile_definitions(${name} PRIVATE
    MAMBA_SOURCE_DIR="${PROJECT_SOURCE_DIR}" MAMBA_BINARY_DIR="${PROJECT_BINARY_DIR}")
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT 900
    ENVIRONMENT "OMP_WAIT_POLICY=passive")
endfunction()
