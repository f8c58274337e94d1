// Entry points: simulation and rendering of batches, on a GPU (nvcc) or a CPU (g++ -x c++).
#include "shade.h"
#include "sim.h"

#ifdef __CUDACC__
__global__ void k_sim(float *S, const float *acts, const float *cond, float *fp, int B, int T, int do_spawn) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= B)
    return;
  float s[NSTATE];
  for (int j = 0; j < NSTATE; j++)
    s[j] = S[i * NSTATE + j];
  if (do_spawn)
    spawn(s);
  sim_clip(s, acts + (size_t)i * T * NACT, cond + (size_t)i * T * 3, fp ? fp + (size_t)i * T * NFP : nullptr,
           T);
  for (int j = 0; j < NSTATE; j++)
    S[i * NSTATE + j] = s[j];
}

// Four blocks a multiprocessor: at most 128 registers.
__global__ void __launch_bounds__(128, 4) k_render(const float *fp, uint8_t *out, int N, int H, int W, int spp) {
  __shared__ float F[NFP];
  int f = blockIdx.z;
  for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < NFP; i += blockDim.x * blockDim.y)
    F[i] = fp[(size_t)f * NFP + i];
  __syncthreads();
  int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= W || y >= H)
    return;
  render_pixel(out + (((size_t)f * H + y) * W + x) * 3, F, x, y, W, H, spp);
}

__global__ void k_pose(const float *fp, float *out, int N, int H, int W) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < N)
    pose_frame(out + (size_t)i * NJOINT * 3, fp + (size_t)i * NFP, H, W);
}

extern "C" int w_sim(float *S, const float *a, const float *c, float *fp, int B, int T, int sp, void *st) {
  k_sim<<<(B + 31) / 32, 32, 0, (cudaStream_t)st>>>(S, a, c, fp, B, T, sp);
  return (int)cudaGetLastError();
}

extern "C" int w_render(const float *fp, uint8_t *out, int N, int H, int W, int spp, void *st) {
  dim3 b(16, 8), g((W + 15) / 16, (H + 7) / 8, N);
  k_render<<<g, b, 0, (cudaStream_t)st>>>(fp, out, N, H, W, spp);
  return (int)cudaGetLastError();
}

extern "C" int w_pose(const float *fp, float *out, int N, int H, int W, void *st) {
  k_pose<<<(N + 63) / 64, 64, 0, (cudaStream_t)st>>>(fp, out, N, H, W);
  return (int)cudaGetLastError();
}
#else
extern "C" int w_sim(float *S, const float *a, const float *c, float *fp, int B, int T, int sp, void *) {
#pragma omp parallel for
  for (int i = 0; i < B; i++) {
    if (sp)
      spawn(S + i * NSTATE);
    sim_clip(S + i * NSTATE, a + (size_t)i * T * NACT, c + (size_t)i * T * 3,
             fp ? fp + (size_t)i * T * NFP : nullptr, T);
  }
  return 0;
}

extern "C" int w_render(const float *fp, uint8_t *out, int N, int H, int W, int spp, void *) {
#pragma omp parallel for schedule(dynamic, 4)
  for (int r = 0; r < N * H; r++) {
    int f = r / H, y = r % H;
    for (int x = 0; x < W; x++)
      render_pixel(out + (((size_t)f * H + y) * W + x) * 3, fp + (size_t)f * NFP, x, y, W, H, spp);
  }
  return 0;
}

extern "C" int w_pose(const float *fp, float *out, int N, int H, int W, void *) {
  for (int i = 0; i < N; i++)
    pose_frame(out + (size_t)i * NJOINT * 3, fp + (size_t)i * NFP, H, W);
  return 0;
}
#endif
// Sizes of the state, of a frame's parameters, of the keys and of a pose, for the caller to compare with its own.
extern "C" int w_dims(int k) {
  const int sizes[4] = {(int)NSTATE, (int)NFP, (int)NACT, (int)NJOINT};
  return sizes[k & 3];
}
