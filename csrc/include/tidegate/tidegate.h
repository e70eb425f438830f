// The whole public C++ API of Tidegate.
#ifndef TIDEGATE_TIDEGATE_H_
#define TIDEGATE_TIDEGATE_H_

#include "tidegate/config.h"
#include "tidegate/errors.h"
#include "tidegate/export.h"
#include "tidegate/functions.h"
#include "tidegate/interrupt.h"
#include "tidegate/linear.h"
#include "tidegate/losses.h"
#include "tidegate/model.h"
#include "tidegate/optimizers.h"
#include "tidegate/precision.h"
#include "tidegate/safetensors.h"
#include "tidegate/settings.h"
#include "tidegate/version.h"
#include "tidegate/view.h"

#endif  // TIDEGATE_TIDEGATE_H_
