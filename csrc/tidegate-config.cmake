# The installed CMake package: find_package(tidegate), then link tidegate::tidegate.
include(CMakeFindDependencyMacro)
find_dependency(OpenMP COMPONENTS CXX)
find_dependency(Threads)
include(${CMAKE_CURRENT_LIST_DIR}/tidegate-targets.cmake)
