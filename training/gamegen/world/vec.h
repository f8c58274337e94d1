// Vectors, hashes and value noise. One source, compiled by nvcc for a GPU or by g++ for a CPU.
#pragma once
#include <math.h>
#include <stdint.h>
#ifdef __CUDACC__
#define HD __host__ __device__ __forceinline__
#define HDN __host__ __device__ __noinline__
#else
#define HD inline
#define HDN
#endif
struct V3 {
  float x, y, z;
};

HD V3 v3(float x, float y, float z) {
  V3 r;
  r.x = x;
  r.y = y;
  r.z = z;
  return r;
}

HD V3 operator+(V3 a, V3 b) {
  return v3(a.x + b.x, a.y + b.y, a.z + b.z);
}

HD V3 operator-(V3 a, V3 b) {
  return v3(a.x - b.x, a.y - b.y, a.z - b.z);
}

HD V3 operator*(V3 a, float s) {
  return v3(a.x * s, a.y * s, a.z * s);
}

HD V3 operator*(V3 a, V3 b) {
  return v3(a.x * b.x, a.y * b.y, a.z * b.z);
}

HD float dot(V3 a, V3 b) {
  return a.x * b.x + a.y * b.y + a.z * b.z;
}

HD V3 cross(V3 a, V3 b) {
  return v3(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x);
}

HD V3 norm(V3 a) {
  return a * (1.0f / sqrtf(dot(a, a) + 1e-12f));
}

HD float clampf(float x, float a, float b) {
  return fminf(fmaxf(x, a), b);
}

HD float sat(float x) {
  return clampf(x, 0.f, 1.f);
}

HD float mixf(float a, float b, float t) {
  return a + (b - a) * t;
}

HD V3 mix(V3 a, V3 b, float t) {
  return a + (b - a) * t;
}

HD float sstep(float a, float b, float x) {
  float t = sat((x - a) / (b - a));
  return t * t * (3.f - 2.f * t);
}

HD float fractf_(float x) {
  return x - floorf(x);
}

HD uint32_t hash3i(int x, int y, uint32_t s) {
  uint32_t h = (uint32_t)x * 0x8da6b343u ^ (uint32_t)y * 0xd8163841u ^ s * 0xcb1ab31fu;
  h ^= h >> 15;
  h *= 0x2c1b3c6du;
  h ^= h >> 12;
  h *= 0x297a2d39u;
  h ^= h >> 15;
  return h;
}

HD float u01(uint32_t h) {
  return (float)(h >> 8) * (1.0f / 16777216.0f);
}

HD uint32_t nexth(uint32_t h) {
  h ^= h << 13;
  h ^= h >> 17;
  h ^= h << 5;
  return h * 0x9E3779B1u + 0x7F4A7C15u;
}

HD float vnoise(float x, float y, uint32_t s) {
  float fx = floorf(x), fy = floorf(y);
  int ix = (int)fx, iy = (int)fy;
  float u = x - fx, v = y - fy;
  u = u * u * (3.f - 2.f * u);
  v = v * v * (3.f - 2.f * v);
  float a = u01(hash3i(ix, iy, s)), b = u01(hash3i(ix + 1, iy, s)), c = u01(hash3i(ix, iy + 1, s)),
        d = u01(hash3i(ix + 1, iy + 1, s));
  return mixf(mixf(a, b, u), mixf(c, d, u), v);
}
