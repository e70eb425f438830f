// The one place where the version is written; CMake and the Python package read it from here.
#ifndef TIDEGATE_VERSION_H_
#define TIDEGATE_VERSION_H_

#define TIDEGATE_VERSION "0.1.0"

#endif  // TIDEGATE_VERSION_H_
