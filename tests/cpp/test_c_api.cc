/* The C API, used from C: this file is compiled as C99 and as C++, and has its own harness. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
#include <string>
#include <thread>
#endif

#include "tidegate/tidegate_c.h"

enum { I = 3, H = 4, N = 2, T = 5, GATES = 4 * H };

static int failures = 0;

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      ++failures;                                                                  \
      printf("%s:%d: CHECK(%s); last error: %s\n", __FILE__, __LINE__, #condition, \
             tidegate_last_error());                                               \
    }                                                                              \
  } while (0)

/* Checks that a call is refused with a message that begins so. */
#define CHECK_REFUSED(call, message)                                      \
  do {                                                                    \
    CHECK((call) == TIDEGATE_INVALID_ARGUMENT);                           \
    CHECK(strncmp(tidegate_last_error(), message, strlen(message)) == 0); \
  } while (0)

static void fill(float* values, int count, int seed) {
  int i;
  for (i = 0; i < count; ++i) values[i] = (float)((i * 7 + seed * 13) % 17 - 8) / 16.0f;
}

static const char options[] = "{\"kind\": \"LSTM\", \"input_size\": 3, \"hidden_size\": 4}";
static float weight_ih[GATES * I], weight_hh[GATES * H], bias_ih[GATES], bias_hh[GATES];
/* In an order other than that of the flat vector. */
static const tidegate_parameter parameters[] = {{"bias_ih_l0", bias_ih, GATES},
                                                {"weight_hh_l0", weight_hh, GATES * H},
                                                {"weight_ih_l0", weight_ih, GATES * I},
                                                {"bias_hh_l0", bias_hh, GATES}};

static tidegate_model* make_model(void) {
  tidegate_model* model = NULL;
  CHECK(tidegate_model_create(options, parameters, 4, &model) == TIDEGATE_OK);
  return model;
}

static double sigmoid(double a) { return 1 / (1 + exp(-a)); }

/* One step by the equations; h and c are updated. */
static void step_by_hand(const float* x, double* h, double* c) {
  double gates[GATES];
  int g, k;
  for (g = 0; g < GATES; ++g) {
    gates[g] = (double)bias_ih[g] + (double)bias_hh[g];
    for (k = 0; k < I; ++k) gates[g] += (double)weight_ih[g * I + k] * (double)x[k];
    for (k = 0; k < H; ++k) gates[g] += (double)weight_hh[g * H + k] * h[k];
  }
  for (k = 0; k < H; ++k) {
    c[k] = sigmoid(gates[H + k]) * c[k] + sigmoid(gates[k]) * tanh(gates[2 * H + k]);
    h[k] = sigmoid(gates[3 * H + k]) * tanh(c[k]);
  }
}

static void test_run_and_stream(void) {
  tidegate_model* model = make_model();
  tidegate_stream* stream = NULL;
  float x[T * N * I], y[T * N * H], h_n[N * H], c_n[N * H], step_y[N * H], h[N * H], c[N * H];
  double exact_h[H] = {0}, exact_c[H] = {0};
  tidegate_run run;
  int64_t lengths[N];
  const int64_t second[] = {1}, third[] = {2};
  int t, k;
  fill(x, T * N * I, 5);

  CHECK(tidegate_model_input_size(model) == I);
  CHECK(tidegate_model_hidden_size(model) == H);
  CHECK(tidegate_model_state_size(model) == H);
  CHECK(tidegate_model_output_size(model) == H);
  CHECK(tidegate_model_num_layers(model) == 1);
  CHECK(tidegate_model_num_directions(model) == 1);
  CHECK(tidegate_model_has_cell_state(model) == 1);

  memset(&run, 0, sizeof run);
  run.steps = T;
  run.batch = N;
  run.x = x;
  run.y = y;
  run.h_n = h_n;
  run.c_n = c_n;
  CHECK(tidegate_model_run(model, &run) == TIDEGATE_OK);
  for (t = 0; t < T; ++t) {
    step_by_hand(x + t * N * I, exact_h, exact_c); /* the first row */
    for (k = 0; k < H; ++k) CHECK(fabs((double)y[t * N * H + k] - exact_h[k]) < 1e-5);
  }
  for (k = 0; k < H; ++k) CHECK(fabs((double)c_n[k] - exact_c[k]) < 1e-5);

  /* A stream outlives the caller's model; its steps have the bits of the whole. */
  CHECK(tidegate_stream_create(model, N, &stream) == TIDEGATE_OK);
  tidegate_model_free(model);
  CHECK(tidegate_stream_batch(stream) == N);
  for (t = 0; t < T; ++t) {
    CHECK(tidegate_stream_step(stream, x + t * N * I, step_y) == TIDEGATE_OK);
    CHECK(memcmp(step_y, y + t * N * H, sizeof step_y) == 0);
  }
  CHECK(tidegate_stream_get_state(stream, h, c) == TIDEGATE_OK);
  CHECK(memcmp(h, h_n, sizeof h) == 0 && memcmp(c, c_n, sizeof c) == 0);

  /* In chunks, and with a restored state. */
  CHECK(tidegate_stream_reset(stream, -1) == TIDEGATE_OK);
  CHECK(tidegate_stream_run(stream, 2, x, y, 0) == TIDEGATE_OK);
  CHECK(tidegate_stream_get_state(stream, h, c) == TIDEGATE_OK);
  CHECK(tidegate_stream_set_state(stream, NULL, NULL) == TIDEGATE_OK);
  CHECK(tidegate_stream_set_state(stream, h, c) == TIDEGATE_OK);
  CHECK(tidegate_stream_run(stream, T - 2, x + 2 * N * I, y, 1) == TIDEGATE_OK);
  CHECK(tidegate_stream_get_state(stream, h, NULL) == TIDEGATE_OK);
  CHECK(memcmp(h, h_n, sizeof h) == 0);

  /* One row alone, and a stream that shrinks and grows. */
  CHECK(tidegate_stream_reset(stream, 0) == TIDEGATE_OK);
  CHECK(tidegate_stream_reset(stream, 1) == TIDEGATE_OK);
  for (t = 0; t < T; ++t) {
    CHECK(tidegate_stream_step_rows(stream, second, 1, x + (t * N + 1) * I, step_y) == TIDEGATE_OK);
  }
  CHECK(memcmp(step_y, h_n + H, H * sizeof(float)) == 0);
  CHECK(tidegate_stream_get_state(stream, h, NULL) == TIDEGATE_OK);
  for (k = 0; k < H; ++k) CHECK(h[k] == 0.0f);
  CHECK(tidegate_stream_resize(stream, 3) == TIDEGATE_OK);
  CHECK(tidegate_stream_batch(stream) == 3);
  CHECK(tidegate_stream_step_rows(stream, third, 1, x, step_y) == TIDEGATE_OK);
  CHECK(tidegate_stream_resize(stream, 0) == TIDEGATE_OK);
  CHECK(tidegate_stream_step(stream, NULL, NULL) == TIDEGATE_OK);
  tidegate_stream_free(stream);

  /* Lengths, and initial states in place. */
  model = make_model();
  lengths[0] = 2;
  lengths[1] = 0;
  memset(h, 0, sizeof h);
  memset(c, 0, sizeof c);
  c[H] = 0.5f;
  run.lengths = lengths;
  run.h_0 = run.h_n = h;
  run.c_0 = run.c_n = c;
  CHECK(tidegate_model_run(model, &run) == TIDEGATE_OK);
  CHECK(c[H] == 0.5f);
  CHECK(y[2 * N * H] == 0.0f);
  CHECK(memcmp(h, y + N * H, H * sizeof(float)) == 0);
  tidegate_model_free(model);
}

/* A safetensors file in memory: the length of the header, the header, the data. */
static void write_file_bytes(char* bytes, const char* header, size_t header_size, const void* data,
                             size_t data_size) {
  const uint64_t length = header_size;
  memcpy(bytes, &length, 8);
  memcpy(bytes + 8, header, header_size);
  memcpy(bytes + 8 + header_size, data, data_size);
}

/* Writes these bytes to a new file, whose path is returned in `path`. */
static void write_file(char* path, size_t path_size, const char* bytes, size_t size) {
  const char* const folder = getenv("TMPDIR");
  FILE* file;
  CHECK(snprintf(path, path_size, "%s/tidegate-c-api-%p", folder ? folder : "/tmp",
                 (const void*)bytes) < (int)path_size);
  file = fopen(path, "wb");
  CHECK(file != NULL && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
}

static void test_mgu(void) {
  static const char header[] =
      "{\"__metadata__\": {\"tidegate.format\": \"1\", \"tidegate.layer\": "
      "\"{\\\"kind\\\": \\\"MGU\\\", \\\"input_size\\\": 1, \\\"hidden_size\\\": 1, "
      "\\\"bias\\\": false}\"}, "
      "\"weight_ih_l0\": {\"dtype\": \"F32\", \"shape\": [2, 1], \"data_offsets\": [0, 8]}, "
      "\"weight_hh_l0\": {\"dtype\": \"F32\", \"shape\": [2, 1], \"data_offsets\": [8, 16]}}";
  static const float data[4] = {0, 1, 0, 3}; /* gates in the order f, n */
  static const float x = 2, h = 0.5f;
  const size_t size = 8 + sizeof header - 1 + sizeof data;
  char* const bytes = (char*)malloc(size);
  tidegate_model* model = NULL;
  tidegate_stream* stream = NULL;
  float y = 0;
  write_file_bytes(bytes, header, sizeof header - 1, data, sizeof data);

  CHECK(tidegate_model_load_memory(bytes, size, NULL, &model) == TIDEGATE_OK);
  CHECK(tidegate_model_has_cell_state(model) == 0);
  CHECK(tidegate_stream_create(model, 1, &stream) == TIDEGATE_OK);
  CHECK(tidegate_stream_set_state(stream, &h, NULL) == TIDEGATE_OK);
  CHECK(tidegate_stream_step(stream, &x, &y) == TIDEGATE_OK);
  /* f = 1/2, n = tanh(x + 3 * f*h) */
  CHECK(fabs((double)y - (0.25 + 0.5 * tanh(2.75))) < 1e-6);
  CHECK_REFUSED(tidegate_stream_set_state(stream, NULL, &x), "c: an MGU has no cell state");
  tidegate_stream_free(stream);
  tidegate_model_free(model);
  free(bytes);
}

static void test_files(void) {
  static const char header[] =
      "{\"__metadata__\": {\"tidegate.format\": \"1\", \"tidegate.layer.g\": "
      "\"{\\\"kind\\\": \\\"GRU\\\", \\\"input_size\\\": 1, \\\"hidden_size\\\": 1, "
      "\\\"bias\\\": false}\"}, "
      "\"g.weight_ih_l0\": {\"dtype\": \"F32\", \"shape\": [3, 1], \"data_offsets\": [0, 12]}, "
      "\"g.weight_hh_l0\": {\"dtype\": \"F32\", \"shape\": [3, 1], \"data_offsets\": [12, 24]}}";
  static const float data[6] = {0, 0, 1, 0, 0, 0};
  float copied[3] = {7, 7, 7};
  const size_t size = 8 + sizeof header - 1 + sizeof data;
  char* const bytes = (char*)malloc(size);
  char path[1000];
  tidegate_model* model = NULL;
  tidegate_stream* stream = NULL;
  const float x = 2;
  float y = 0;
  write_file_bytes(bytes, header, sizeof header - 1, data, sizeof data);

  CHECK(tidegate_model_load_memory(bytes, size, "g", &model) == TIDEGATE_OK);
  CHECK(tidegate_model_has_cell_state(model) == 0);
  CHECK(tidegate_stream_create(model, 1, &stream) == TIDEGATE_OK);
  CHECK(tidegate_stream_step(stream, &x, &y) == TIDEGATE_OK);
  CHECK(fabs((double)y - 0.5 * tanh(2.0)) < 1e-6); /* z = 1/2, n = tanh(x) */
  CHECK_REFUSED(tidegate_stream_set_state(stream, NULL, &x), "c: a GRU has no cell state");
  CHECK_REFUSED(tidegate_stream_get_state(stream, NULL, &y), "c: a GRU has no cell state");
  tidegate_stream_free(stream);
  tidegate_model_free(model);

  write_file(path, sizeof path, bytes, size);
  CHECK(tidegate_model_load(path, NULL, &model) == TIDEGATE_OK);
  tidegate_model_free(model);
  CHECK(tidegate_tensor_read(path, "g.weight_ih_l0", copied, 3) == TIDEGATE_OK);
  CHECK(memcmp(copied, data, sizeof copied) == 0);
  CHECK(remove(path) == 0);
  CHECK(tidegate_model_load(path, NULL, &model) == TIDEGATE_SYSTEM_ERROR);
  CHECK(strstr(tidegate_last_error(), path) != NULL);
  CHECK(tidegate_tensor_read(path, "g.weight_ih_l0", copied, 3) == TIDEGATE_SYSTEM_ERROR);

  CHECK_REFUSED(tidegate_model_load_memory(bytes, size, "h", &model), "memory: layer: got \"h\"");
  CHECK_REFUSED(tidegate_model_load_memory(bytes, size - 1, NULL, &model), "memory: header: ");
  CHECK_REFUSED(tidegate_model_load_memory(bytes, 0, NULL, &model), "memory: got 0 bytes");
  CHECK_REFUSED(tidegate_model_load_memory(NULL, 0, NULL, &model), "data: got a null pointer");
  CHECK_REFUSED(tidegate_model_load_memory(bytes, size, NULL, NULL), "model: got a null pointer");
  CHECK_REFUSED(tidegate_model_load(NULL, NULL, &model), "path: got a null pointer");

#define READ(tensor, values, count, message) \
  CHECK_REFUSED(tidegate_tensor_read_memory(bytes, size, tensor, values, count), message)
  copied[0] = 7;
  READ("g.weight_ih", copied, 3,
       "memory: tensor \"g.weight_ih\": the file has no tensor of this name");
  READ("g.weight_ih_l0", copied, 2, "memory: tensor \"g.weight_ih_l0\": got a count of 2");
  READ("g.weight_ih_l0", NULL, 3, "values: got a null pointer");
  READ(NULL, copied, 3, "tensor: got a null pointer");
  CHECK_REFUSED(tidegate_tensor_read(NULL, "w", copied, 3), "path: got a null pointer");
  CHECK_REFUSED(tidegate_tensor_read_memory(NULL, 0, "w", copied, 3), "data: got a null pointer");
  CHECK(copied[0] == 7.0f);
  CHECK(tidegate_tensor_read_memory(bytes, size, "g.weight_hh_l0", copied, 3) == TIDEGATE_OK);
  CHECK(copied[0] == 0.0f);
  memcpy(strstr(bytes + 8, "F32"), "I32", 3);
  READ("g.weight_ih_l0", copied, 3, "memory: tensor \"g.weight_ih_l0\": got dtype I32, wanted F32");
  free(bytes);
}

static void test_linear(void) {
  static const char header[] =
      "{\"__metadata__\": {\"tidegate.format\": \"1\", \"tidegate.layer.head\": "
      "\"{\\\"kind\\\": \\\"Linear\\\", \\\"in_features\\\": 3, \\\"out_features\\\": 2}\"}, "
      "\"head.weight\": {\"dtype\": \"F32\", \"shape\": [2, 3], \"data_offsets\": [0, 24]}, "
      "\"head.bias\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [24, 32]}}";
  static const float data[8] = {1, 2, 3, 4, 5, 6, 0.5f, -0.5f};
  static const float x[2 * 3] = {1, 10, 100, -1, 0, 1};
  static const float wanted[2 * 2] = {321.5f, 653.5f, 2.5f, 1.5f};
  const size_t size = 8 + sizeof header - 1 + sizeof data;
  char* const bytes = (char*)malloc(size);
  char path[1000];
  float y[2 * 2];
  int threads;
  tidegate_linear* linear = NULL;
  tidegate_model* model = NULL;
  write_file_bytes(bytes, header, sizeof header - 1, data, sizeof data);
  write_file(path, sizeof path, bytes, size);

  CHECK(tidegate_linear_load(path, NULL, &linear) == TIDEGATE_OK);
  tidegate_linear_free(linear);
  CHECK(remove(path) == 0);
  linear = NULL;
  CHECK(tidegate_linear_load(path, NULL, &linear) == TIDEGATE_SYSTEM_ERROR);
  CHECK(strstr(tidegate_last_error(), path) != NULL);
  CHECK(linear == NULL);
  CHECK(tidegate_linear_load_memory(bytes, size, "head", &linear) == TIDEGATE_OK);
  CHECK(tidegate_linear_in_features(linear) == 3);
  CHECK(tidegate_linear_out_features(linear) == 2);
  for (threads = 0; threads < 3; ++threads) {
    memset(y, 0, sizeof y);
    CHECK(tidegate_linear_run(linear, 2, x, y, threads) == TIDEGATE_OK);
    CHECK(memcmp(y, wanted, sizeof y) == 0); /* small integers and halves are exact */
  }
  CHECK(tidegate_linear_run(linear, 0, NULL, NULL, 1) == TIDEGATE_OK);

  memset(y, 0, sizeof y);
  CHECK_REFUSED(tidegate_linear_run(NULL, 1, x, y, 1), "linear: got a null pointer");
  CHECK_REFUSED(tidegate_linear_run(linear, -1, x, y, 1), "rows: got a negative number");
  CHECK_REFUSED(tidegate_linear_run(linear, 1, NULL, y, 1), "x: got a null pointer");
  CHECK_REFUSED(tidegate_linear_run(linear, 1, x, NULL, 1), "y: got a null pointer");
  CHECK_REFUSED(tidegate_linear_run(linear, 1, x, y, -1), "num_threads: got a negative number");
  CHECK(tidegate_linear_run(linear, INT64_MAX, x, y, 1) == TIDEGATE_OUT_OF_MEMORY);
  CHECK(y[0] == 0.0f);
  tidegate_linear_free(linear);
  tidegate_linear_free(NULL);
  CHECK(tidegate_linear_in_features(NULL) == 0);
  CHECK(tidegate_linear_out_features(NULL) == 0);

  linear = NULL;
#define LOAD(bytes, size, layer, linear, message) \
  CHECK_REFUSED(tidegate_linear_load_memory(bytes, size, layer, linear), message)
  LOAD(bytes, size, "h", &linear, "memory: layer: got \"h\", wanted one of the Linear layers");
  LOAD(bytes, size - 1, NULL, &linear, "memory: header: ");
  LOAD(NULL, 0, NULL, &linear, "data: got a null pointer");
  LOAD(bytes, size, NULL, NULL, "linear: got a null pointer");
  CHECK_REFUSED(tidegate_linear_load(NULL, NULL, &linear), "path: got a null pointer");
  CHECK_REFUSED(tidegate_model_load_memory(bytes, size, "head", &model), "memory: layer: got");
  CHECK(linear == NULL && model == NULL);
  free(bytes);
}

/* A step from a state of zero. */
static void step_once(const tidegate_model* model, const float* x, float* y) {
  tidegate_stream* stream = NULL;
  CHECK(tidegate_stream_create(model, 1, &stream) == TIDEGATE_OK);
  CHECK(tidegate_stream_step(stream, x, y) == TIDEGATE_OK);
  tidegate_stream_free(stream);
}

static void test_models_in_low_precision(void) {
  static const char* const precisions[] = {"bfloat16", "bfloat16-dot", "int8"};
  static const char header[] =
      "{\"__metadata__\": {\"tidegate.format\": \"1\", \"tidegate.layer\": "
      "\"{\\\"kind\\\": \\\"MGU\\\", \\\"input_size\\\": 3, \\\"hidden_size\\\": 1, "
      "\\\"bias\\\": false}\"}, "
      "\"weight_ih_l0\": {\"dtype\": \"F32\", \"shape\": [2, 3], \"data_offsets\": [0, 24]}, "
      "\"weight_hh_l0\": {\"dtype\": \"F32\", \"shape\": [2, 1], \"data_offsets\": [24, 32]}}";
  static const float data[8] = {0.1f, 0.2f, 0.3f, 1.1f, -2.3f, 0.7f, 0.6f, 0.9f};
  static const tidegate_parameter given[] = {{"weight_ih_l0", data, 6},
                                             {"weight_hh_l0", data + 6, 2}};
  static const float x[3] = {0.3f, 0.4f, -0.7f};
  const size_t size = 8 + sizeof header - 1 + sizeof data;
  char* const bytes = (char*)malloc(size);
  char path[1000], text[200];
  float exact = 0, low = 0, loaded = 0;
  tidegate_model* model = NULL;
  int i;
  write_file_bytes(bytes, header, sizeof header - 1, data, sizeof data);
  write_file(path, sizeof path, bytes, size);

  CHECK(tidegate_model_load(path, NULL, &model) == TIDEGATE_OK);
  CHECK(strcmp(tidegate_model_precision(model), "float32") == 0);
  step_once(model, x, &exact);
  tidegate_model_free(model);
  for (i = 0; i < 2; ++i) {
    CHECK(snprintf(text, sizeof text,
                   "{\"kind\": \"MGU\", \"input_size\": 3, \"hidden_size\": 1, \"bias\": false, "
                   "\"precision\": \"%s\"}",
                   precisions[i]) < (int)sizeof text);
    CHECK(tidegate_model_create(text, given, 2, &model) == TIDEGATE_OK);
    CHECK(strcmp(tidegate_model_precision(model), precisions[i]) == 0);
    step_once(model, x, &low);
    tidegate_model_free(model);
    CHECK(memcmp(&low, &exact, sizeof low) != 0);
    CHECK(fabs((double)low - (double)exact) < 0.02);

    CHECK(tidegate_model_load_as(path, NULL, precisions[i], &model) == TIDEGATE_OK);
    CHECK(strcmp(tidegate_model_precision(model), precisions[i]) == 0);
    step_once(model, x, &loaded);
    tidegate_model_free(model);
    CHECK(memcmp(&loaded, &low, sizeof low) == 0);
    CHECK(tidegate_model_load_memory_as(bytes, size, NULL, precisions[i], &model) == TIDEGATE_OK);
    step_once(model, x, &loaded);
    tidegate_model_free(model);
    CHECK(memcmp(&loaded, &low, sizeof low) == 0);
  }
  CHECK(tidegate_model_load_as(path, NULL, NULL, &model) == TIDEGATE_OK);
  CHECK(strcmp(tidegate_model_precision(model), "float32") == 0);
  tidegate_model_free(model);
  CHECK(strcmp(tidegate_model_precision(NULL), "") == 0);

  model = NULL;
  CHECK_REFUSED(tidegate_model_load_as(path, NULL, "int4", &model),
                "precision: got \"int4\", wanted \"bfloat16\", \"bfloat16-dot\" or \"int8\"");
  CHECK_REFUSED(tidegate_model_load_as(NULL, NULL, "int8", &model), "path: got a null pointer");
  CHECK_REFUSED(tidegate_model_load_as(path, NULL, "int8", NULL), "model: got a null pointer");
  CHECK_REFUSED(tidegate_model_load_memory_as(bytes, size, "a", "int8", &model),
                "memory: layer: got");
  CHECK_REFUSED(
      tidegate_model_create("{\"kind\": \"MGU\", \"precision\": \"float16\"}", given, 2, &model),
      "options: byte ");
  CHECK(remove(path) == 0);
  CHECK(model == NULL);
  free(bytes);
}

/* A Linear in int8, as a file has it. */
static void test_a_linear_in_low_precision(void) {
  static const char header[] =
      "{\"__metadata__\": {\"tidegate.format\": \"1\", \"tidegate.layer\": "
      "\"{\\\"kind\\\": \\\"Linear\\\", \\\"in_features\\\": 2, \\\"out_features\\\": 1, "
      "\\\"precision\\\": \\\"int8\\\"}\"}, "
      "\"bias\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}, "
      "\"weight_scale\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [4, 8]}, "
      "\"weight\": {\"dtype\": \"I8\", \"shape\": [1, 2], \"data_offsets\": [8, 10]}}";
  static const float bias_and_scale[2] = {0.5f, 0.25f}, x[2] = {127, -127};
  static const signed char weight[2] = {8, -4};
  char data[10];
  const size_t size = 8 + sizeof header - 1 + sizeof data;
  char* const bytes = (char*)malloc(size);
  char path[1000];
  float y = 0;
  tidegate_linear* linear = NULL;
  memcpy(data, bias_and_scale, 8);
  memcpy(data + 8, weight, 2);
  write_file_bytes(bytes, header, sizeof header - 1, data, sizeof data);
  write_file(path, sizeof path, bytes, size);

  CHECK(tidegate_linear_load_memory(bytes, size, NULL, &linear) == TIDEGATE_OK);
  CHECK(strcmp(tidegate_linear_precision(linear), "int8") == 0);
  CHECK(tidegate_linear_run(linear, 1, x, &y, 1) == TIDEGATE_OK);
  CHECK(y == 381.5f); /* 127 * 0.25 * (8 + 4) + 0.5, exact */
  tidegate_linear_free(linear);
  CHECK(tidegate_linear_load_as(path, NULL, "int8", &linear) == TIDEGATE_OK);
  tidegate_linear_free(linear);
  CHECK(strcmp(tidegate_linear_precision(NULL), "") == 0);

  linear = NULL;
  CHECK_REFUSED(tidegate_linear_load_memory_as(bytes, size, NULL, "bfloat16", &linear),
                "memory: layer: got a layer in int8, wanted bfloat16; load it without");
  CHECK_REFUSED(tidegate_linear_load_as(path, NULL, "", &linear), "precision: got \"\", wanted");
  CHECK(remove(path) == 0);
  CHECK(linear == NULL);
  free(bytes);
}

static void test_what_is_refused(void) {
  tidegate_parameter changed[5];
  tidegate_model* model = make_model();
  tidegate_model* other = NULL;
  tidegate_stream* stream = NULL;
  float x[N * I] = {0}, y[N * H] = {0};
  int k;
  const int64_t rows[] = {0, N}, twice[] = {1, 1}, backwards[] = {1, 0};
  tidegate_run run;

#define CREATE(text, count, message) \
  CHECK_REFUSED(tidegate_model_create(text, changed, count, &other), message)
  memcpy(changed, parameters, sizeof parameters);
  changed[4] = changed[0];
  CREATE(options, 3, "parameters: missing bias_hh_l0");
  CREATE(options, 5, "parameters: bias_ih_l0 is given twice");
  CREATE(options, 0, "parameters: missing ");
  CREATE("", 4, "options: byte 0: ");
  CREATE("{\"kind\": \"LSTM\", \"input_size\": 3, \"hidden_size\": 0}", 4, "options: hidden_size");
  CREATE("{\"kind\": \"LSTM\", \"input_size\": 3, \"hidden_size\": 4, \"num_layers\": 99}", 4,
         "options: num_layers: got 99");
  CREATE("{\"kind\": \"Linear\", \"in_features\": 3, \"out_features\": 4}", 4, "options: wanted");
  CREATE("{\"kind\": \"LSTM\", \"input_size\": 3, \"hidden_size\": 5}", 4,
         "weight_ih_l0: got 48 elements, wanted 60");
  changed[1].name = "weight_hh";
  CREATE(options, 4, "parameters: surplus \"weight_hh\"");
  changed[1].name = NULL;
  CREATE(options, 4, "parameters: name: got a null pointer");
  changed[1] = parameters[1];
  changed[1].data = NULL;
  CREATE(options, 4, "weight_hh_l0: got a null pointer");
  CHECK_REFUSED(tidegate_model_create(NULL, parameters, 4, &other), "options: got a null");
  CHECK_REFUSED(tidegate_model_create(options, NULL, 4, &other), "parameters: got a null");
  CHECK_REFUSED(tidegate_model_create(options, parameters, 4, NULL), "model: got a null");
  CHECK(other == NULL);

  memset(&run, 0, sizeof run);
  CHECK(tidegate_model_run(model, &run) == TIDEGATE_OK); /* nothing to do */
  run.steps = 1;
  run.batch = N;
  CHECK_REFUSED(tidegate_model_run(model, &run), "x: got a null pointer");
  run.x = x;
  CHECK_REFUSED(tidegate_model_run(model, &run), "y: got a null pointer");
  run.y = y;
  run.num_threads = -1;
  CHECK_REFUSED(tidegate_model_run(model, &run), "num_threads: ");
  run.num_threads = 0;
  run.steps = -1;
  CHECK_REFUSED(tidegate_model_run(model, &run), "steps: ");
  run.steps = INT64_MAX;
  CHECK(tidegate_model_run(model, &run) == TIDEGATE_OUT_OF_MEMORY);
  CHECK_REFUSED(tidegate_model_run(model, NULL), "run: got a null pointer");
  CHECK_REFUSED(tidegate_model_run(NULL, &run), "model: got a null pointer");

  CHECK_REFUSED(tidegate_stream_create(model, -1, &stream), "batch: got -1");
  CHECK_REFUSED(tidegate_stream_create(NULL, 1, &stream), "model: got a null pointer");
  CHECK_REFUSED(tidegate_stream_create(model, 1, NULL), "stream: got a null pointer");
  CHECK(tidegate_stream_create(model, N, &stream) == TIDEGATE_OK);
  CHECK_REFUSED(tidegate_stream_step(stream, NULL, y), "x: got a null pointer");
  CHECK_REFUSED(tidegate_stream_step(stream, x, NULL), "y: got a null pointer");
  CHECK_REFUSED(tidegate_stream_step(NULL, x, y), "stream: got a null pointer");
  CHECK_REFUSED(tidegate_stream_step_rows(stream, rows, 2, x, y), "rows: got 2, wanted 0 to");
  CHECK_REFUSED(tidegate_stream_step_rows(stream, rows, -1, x, y), "count: got -1, wanted 0 to");
  CHECK_REFUSED(tidegate_stream_step_rows(stream, twice, 2, x, y),
                "rows: got 1, wanted each row once");
  CHECK_REFUSED(tidegate_stream_step_rows(stream, twice, 1, NULL, y), "x: got a null pointer");
  CHECK_REFUSED(tidegate_stream_step_rows(NULL, twice, 1, x, y), "stream: got a null pointer");
  CHECK(tidegate_stream_get_state(stream, y, NULL) == TIDEGATE_OK);
  for (k = 0; k < N * H; ++k) CHECK(y[k] == 0.0f); /* refused calls change no state */
  CHECK(tidegate_stream_step_rows(stream, backwards, 2, x, y) == TIDEGATE_OK);
  CHECK(tidegate_stream_step_rows(stream, backwards, 2, x, y) == TIDEGATE_OK);
  CHECK_REFUSED(tidegate_stream_step_rows(stream, rows, 3, x, y), "count: ");
  CHECK_REFUSED(tidegate_stream_step_rows(stream, NULL, 1, x, y), "rows: got a null pointer");
  CHECK_REFUSED(tidegate_stream_run(stream, -1, x, y, 1), "steps: ");
  CHECK_REFUSED(tidegate_stream_run(stream, 1, x, NULL, 1), "y: got a null pointer");
  CHECK_REFUSED(tidegate_stream_run(stream, 1, x, y, -1), "num_threads: ");
  CHECK_REFUSED(tidegate_stream_reset(stream, N), "row: ");
  CHECK_REFUSED(tidegate_stream_resize(stream, -1), "batch: got -1");
  CHECK(tidegate_stream_resize(stream, INT64_MAX) == TIDEGATE_OUT_OF_MEMORY);
  CHECK(strcmp(tidegate_last_error(), "the sizes overflow") == 0);
  CHECK(tidegate_stream_batch(stream) == N);
  CHECK_REFUSED(tidegate_stream_reset(NULL, -1), "stream: got a null pointer");
  tidegate_stream_free(stream);
  tidegate_stream_free(NULL);
  tidegate_model_free(model);
  tidegate_model_free(NULL);
  CHECK(tidegate_model_input_size(NULL) == 0);
  CHECK(tidegate_stream_batch(NULL) == 0);
}

/* The reason follows the path, however long it is; too long a message is cut between characters. */
static void test_long_messages(void) {
  enum { PATH = 4000, TOO_LONG = 9001 };
  static char path[TOO_LONG + 1];
  tidegate_model* model = NULL;
  size_t length;
  int i;
  memset(path, '/', PATH);
  memcpy(path + PATH, "nothing", 8);
  CHECK(tidegate_model_load(path, NULL, &model) == TIDEGATE_SYSTEM_ERROR);
  CHECK(strlen(tidegate_last_error()) > PATH + 10);
  for (i = 0; i < TOO_LONG; i += 2) memcpy(path + i, "\xc3\xa9", 2);
  for (i = 0; i < 2; ++i) {
    path[0] = 'a';
    path[TOO_LONG - 1] = '\0';
    CHECK(tidegate_model_load(path + 1 - i, NULL, &model) == TIDEGATE_SYSTEM_ERROR);
    length = strlen(tidegate_last_error());
    CHECK(length > 8000);
    CHECK(tidegate_last_error()[length - 1] == '\xa9');
  }
}

#ifdef __cplusplus /* C99 has no threads */
static void test_each_thread_has_its_error(void) {
  tidegate_model_load(NULL, NULL, NULL);
  const std::string here = tidegate_last_error();
  CHECK(here == "path: got a null pointer");
  std::thread([] {
    CHECK(strcmp(tidegate_last_error(), "") == 0);
    CHECK_REFUSED(tidegate_model_run(NULL, NULL), "model: got a null pointer");
  }).join();
  CHECK(tidegate_last_error() == here);
}
#endif

int main(void) {
  fill(weight_ih, GATES * I, 1);
  fill(weight_hh, GATES * H, 2);
  fill(bias_ih, GATES, 3);
  fill(bias_hh, GATES, 4);
  CHECK(strcmp(tidegate_last_error(), "") == 0);
  CHECK(strlen(tidegate_version()) >= 5);
  CHECK(strncmp(tidegate_fastest_bfloat16(), "bfloat16", 8) == 0);
  test_run_and_stream();
  test_mgu();
  test_files();
  test_linear();
  test_models_in_low_precision();
  test_a_linear_in_low_precision();
  test_what_is_refused();
  test_long_messages();
#ifdef __cplusplus
  test_each_thread_has_its_error();
#endif
  printf("%d failed checks\n", failures);
  return failures > 0;
}
