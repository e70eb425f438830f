// The kernels for weights stored in the type of the computation.
#include "kernels/exact_weights.h"

#include "kernels/isa_tables.h"
#include "kernels/storage.h"

namespace tidegate {

const ForTypes<StorageKernels> TIDEGATE_TABLE(exact_weights) = {
    storage_kernels<ExactWeights<float>>(), storage_kernels<ExactWeights<double>>()};

}  // namespace tidegate
