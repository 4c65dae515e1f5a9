# MAMBA_CUDA: AUTO builds the kernels for NVIDIA GPUs where nvcc is found, ON demands it, OFF does
# without. Sets MAMBA_HAS_CUDA. mamba_add_cuda(target stem...) adds <stem>_cuda.cu and
# <stem>_<part>_cuda.cu for each stem, the table and what the device needs, or without CUDA one file
# that says so.
set(MAMBA_CUDA AUTO CACHE STRING "Kernels for NVIDIA GPUs: AUTO (where nvcc is found), ON or OFF")
set_property(CACHE MAMBA_CUDA PROPERTY STRINGS AUTO ON OFF)
# Machine code of data-centre cards, and PTX, which the driver compiles for newer ones.
set(MAMBA_CUDA_ARCHITECTURES "80-real;90a-real;100" CACHE STRING "CMAKE_CUDA_ARCHITECTURES")

set(MAMBA_HAS_CUDA OFF)
if(MAMBA_CUDA)
  find_program(MAMBA_NVCC nvcc HINTS $ENV{CUDACXX} ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin
               PATHS /usr/local/cuda/bin)
  if(MAMBA_NVCC)
    if(NOT DEFINED CMAKE_CUDA_COMPILER)
      set(CMAKE_CUDA_COMPILER ${MAMBA_NVCC})
    endif()
    set(CMAKE_CUDA_ARCHITECTURES ${MAMBA_CUDA_ARCHITECTURES})
    if(MAMBA_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${MAMBA_CCACHE})
    endif()
    enable_language(CUDA)
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25.1 does not know it yet
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    find_package(CUDAToolkit 12.0 REQUIRED)
    set(MAMBA_HAS_CUDA ON)
  elseif(NOT MAMBA_CUDA STREQUAL AUTO)
    message(FATAL_ERROR "MAMBA_CUDA=${MAMBA_CUDA} needs nvcc, which was not found (set CUDACXX)")
  endif()
endif()
message(STATUS "CUDA kernels: ${MAMBA_HAS_CUDA}")

function(mamba_add_cuda target)
  if(NOT MAMBA_HAS_CUDA)
    target_sources(${target} PRIVATE src/device/cuda_absent.cpp)
    return()
  endif()
  set(src ${PROJECT_SOURCE_DIR}/src/kernels)
  set(sources)
  foreach(stem IN LISTS ARGN)
    file(GLOB parts CONFIGURE_DEPENDS ${src}/${stem}_*_cuda.cu)
    list(APPEND sources ${src}/${stem}_cuda.cu ${parts})
  endforeach()
  list(REMOVE_DUPLICATES sources)
  add_library(${target}_kernels_cuda OBJECT ${sources})
  target_include_directories(${target}_kernels_cuda PRIVATE
    ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
  target_compile_options(${target}_kernels_cuda PRIVATE -O3
    -Xcompiler=-Wall,-Wextra
    $<$<BOOL:${MAMBA_WERROR}>:-Xcompiler=-Werror --Werror=all-warnings>
    # A fifth of the size; a kernel is unpacked when it first runs.
    $<$<VERSION_GREATER_EQUAL:${CUDAToolkit_VERSION},12.8>:--compress-mode=size>)
  add_library(${target}_device_cuda OBJECT ${src}/table.cpp ${src}/matrix_library.cpp
    ${PROJECT_SOURCE_DIR}/src/device/cuda.cpp ${PROJECT_SOURCE_DIR}/src/device/cuda_graphs.cpp)
  target_compile_definitions(${target}_device_cuda PRIVATE MAMBA_ISA=cuda)
  target_link_libraries(${target}_device_cuda PRIVATE mamba_options fmt::fmt)
  target_include_directories(${target}_device_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  foreach(objects ${target}_kernels_cuda ${target}_device_cuda)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
  endforeach()
  # The static runtime loads the driver by itself: the program starts where there is none.
  target_link_libraries(${target} PUBLIC CUDA::cudart_static)
endfunction()
