// Terrain: biomes, paths, heights.
#pragma once
#include "layout.h"

struct Biome {
  float amp, freq, water, ridge;
  V3 lo, mid, hi, rock, path;
  V3 wcol;
  float lava;
  float dens;
};

HD Biome biome_of(int b) {
  Biome r;
  r.ridge = 0.f;
  r.lava = 0.f;
  r.water = -100.f;
  r.wcol = v3(.10f, .30f, .38f);
  r.dens = .5f;
  switch (b) {
  case BI_MEADOW:
    r.amp = 11.f;
    r.freq = 1 / 70.f;
    r.water = -1.9f;
    r.lo = v3(.72f, .66f, .42f);
    r.mid = v3(.30f, .54f, .16f);
    r.hi = v3(.52f, .66f, .24f);
    r.rock = v3(.46f, .43f, .38f);
    r.path = v3(.62f, .50f, .33f);
    r.dens = .46f;
    break;
  case BI_DESERT:
    r.amp = 10.f;
    r.freq = 1 / 60.f;
    r.ridge = .55f;
    r.lo = v3(.86f, .66f, .40f);
    r.mid = v3(.90f, .70f, .42f);
    r.hi = v3(.95f, .79f, .52f);
    r.rock = v3(.66f, .38f, .24f);
    r.path = v3(.74f, .52f, .32f);
    r.dens = .36f;
    break;
  case BI_SNOW:
    r.amp = 15.f;
    r.freq = 1 / 72.f;
    r.ridge = .35f;
    r.water = -3.0f;
    r.wcol = v3(.34f, .55f, .68f);
    r.lo = v3(.56f, .66f, .76f);
    r.mid = v3(.70f, .76f, .83f);
    r.hi = v3(.80f, .83f, .87f);
    r.rock = v3(.36f, .40f, .48f);
    r.path = v3(.62f, .64f, .68f);
    r.dens = .44f;
    break;
  case BI_FOREST:
    r.amp = 12.f;
    r.freq = 1 / 56.f;
    r.water = -2.8f;
    r.wcol = v3(.07f, .20f, .20f);
    r.lo = v3(.36f, .30f, .18f);
    r.mid = v3(.18f, .31f, .10f);
    r.hi = v3(.42f, .36f, .12f);
    r.rock = v3(.33f, .33f, .31f);
    r.path = v3(.42f, .31f, .20f);
    r.dens = .82f;
    break;
  case BI_VOLCANIC:
    r.amp = 15.f;
    r.freq = 1 / 60.f;
    r.ridge = .6f;
    r.water = -2.2f;
    r.lava = 1.f;
    r.wcol = v3(1.f, .34f, .05f);
    r.lo = v3(.20f, .10f, .08f);
    r.mid = v3(.19f, .16f, .17f);
    r.hi = v3(.30f, .27f, .28f);
    r.rock = v3(.13f, .11f, .12f);
    r.path = v3(.34f, .24f, .20f);
    r.dens = .46f;
    break;
  default:
    r.amp = 13.f;
    r.freq = 1 / 58.f;
    r.water = -2.2f;
    r.wcol = v3(.05f, .48f, .50f);
    r.lo = v3(.18f, .52f, .52f);
    r.mid = v3(.40f, .20f, .52f);
    r.hi = v3(.66f, .36f, .62f);
    r.rock = v3(.24f, .17f, .38f);
    r.path = v3(.30f, .58f, .58f);
    r.dens = .56f;
    break;
  }
  return r;
}

HD float pathmask(float x, float z, uint32_t s) { // 1 on the road
  float n = vnoise(x * .017f + 31.f, z * .017f + 17.f, s ^ 77u);
  return 1.f - sstep(.018f, .045f, fabsf(n - .5f));
}

HD float height(float x, float z, const Biome &b, uint32_t s, int oct) {
  float f = b.freq, a = 1.f, h = 0.f, px = x, pz = z;
  for (int i = 0; i < oct; i++) {
    float n = vnoise(px * f, pz * f, s + (uint32_t)i) - .5f;
    if (b.ridge > 0.f && i < 3)
      n = mixf(n, .38f - fabsf(n) * 1.9f, b.ridge);
    h += a * n;
    a *= .42f;
    f *= 2.13f;
    float t = px;
    px = .8f * px - .6f * pz;
    pz = .6f * t + .8f * pz;
  }
  h *= b.amp;
  float base = 1.2f; // lift so that most land lies over the water
  h += base;
  if (b.water > -50.f && h < b.water + 1.f)
    h = b.water + 1.f + (h - b.water - 1.f) * .75f;
  return h;
}
