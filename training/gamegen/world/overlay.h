// What lies between the eye and a hit: fog, and particles that move coherently from frame to frame.
#pragma once
#include "trace.h"

// Fog in front of a hit.
HD V3 hit_fog(V3 col, const Hit &h, V3 rd, const Scene &sc) {
  float f = sc.f[F_FOG];
  float a = 1.f - expf(-powf(h.t * f, 1.35f));
  float edge = sstep(140.f, 188.f, h.t);
  V3 fc = sc.fog_color;
  float sd = fmaxf(dot(rd, sc.sun), 0.f);
  fc = fc + sc.sun_color * (powf(sd, 8.f) * .14f * (1.f - sc.night));
  V3 sk = mix(fc, v3(sc.f[F_HOR], sc.f[F_HOR + 1], sc.f[F_HOR + 2]), .25f);
  a = fmaxf(a, edge);
  return mix(col, sk, a);
}

// Fog and sand in front of the sky.
HD V3 sky_fog(V3 col, V3 rd, const Scene &sc) {
  float a = sat(sc.f[F_FOG] * 55.f - .22f) * sstep(.75f, .0f, rd.y);
  col = mix(col, sc.fog_color, sat(a));
  if (sc.f[F_SAND] > .01f)
    col = mix(col, sc.fog_color, sc.f[F_SAND] * .85f * sstep(.9f, .0f, rd.y));
  return col;
}

// Streaks of rain.
HD V3 rain_layers(V3 col, float sx, float sy, const Scene &sc) {
  float yaw = sc.f[F_YAW], tm = sc.f[F_TIME];
  for (int l = 0; l < 2; l++) {
    float sc2 = 16.f + 9.f * l;
    float u = (sx + yaw * .62f + .10f * sy) * sc2, v = sy * sc2 * .22f + tm * (3.3f + .5f * l);
    int iu = (int)floorf(u);
    float ofs = u01(hash3i(iu, l, sc.seed ^ 71u));
    v += ofs * 7.f;
    int iv = (int)floorf(v);
    float k = u01(hash3i(iu, iv, sc.seed ^ 72u));
    float fu = u - iu, fv = v - iv;
    float m = sstep(.14f, .04f, fabsf(fu - .5f)) * sstep(.0f, .3f, fv) * sstep(.9f, .5f, fv);
    if (k < .55f)
      col = mix(col, sc.ambient * 1.15f + v3(.34f, .37f, .41f) * (1.f - .45f * sc.night),
                m * .50f * sc.f[F_RAIN]);
  }
  return col;
}

// Snowflakes.
HD V3 snow_layers(V3 col, float sx, float sy, const Scene &sc) {
  float yaw = sc.f[F_YAW], tm = sc.f[F_TIME];
  for (int l = 0; l < 2; l++) {
    float sc2 = 5.f + 3.6f * l;
    float u = (sx + yaw * .62f) * sc2 + .3f * sinf(tm * .8f + l), v = sy * sc2 + tm * (1.5f + .35f * l);
    int iu = (int)floorf(u), iv = (int)floorf(v);
    uint32_t hh = hash3i(iu, iv, sc.seed ^ (81u + l));
    float du = u - iu - .25f - .5f * u01(hh), dv = v - iv - .25f - .5f * u01(nexth(hh));
    float r = .045f + .08f * u01(nexth(hh ^ 5u));
    float m = sstep(r * 1.25f, r * .5f, sqrtf(du * du + dv * dv));
    if (u01(nexth(hh ^ 9u)) < .70f)
      col =
          mix(col, sc.ambient * .7f + v3(.85f, .87f, .92f) * (1.f - .45f * sc.night), m * .92f * sc.f[F_SNOW]);
  }
  return col;
}

// Rising embers.
HD V3 ember_layers(V3 col, float sx, float sy, const Scene &sc) {
  float yaw = sc.f[F_YAW], tm = sc.f[F_TIME];
  for (int l = 0; l < 2; l++) {
    float sc2 = 5.f + 4.f * l;
    float u = (sx + yaw * .62f) * sc2 + .35f * sinf(tm * 1.3f + sy * 3.f + l),
          v = sy * sc2 - tm * (1.2f + .5f * l);
    int iu = (int)floorf(u), iv = (int)floorf(v);
    uint32_t hh = hash3i(iu, iv, sc.seed ^ (101u + l));
    float du = u - iu - .25f - .5f * u01(hh), dv = v - iv - .25f - .5f * u01(nexth(hh));
    float r2 = du * du + dv * dv;
    if (u01(nexth(hh ^ 9u)) < .75f)
      col = col + v3(1.3f, .50f, .10f) *
                      (sc.f[F_EMBER] * (sstep(.0080f, .0014f, r2) + .22f * sstep(.07f, .0f, r2)));
  }
  return col;
}

// Drifting lights.
HD V3 magic_layers(V3 col, float sx, float sy, const Scene &sc) {
  float yaw = sc.f[F_YAW], tm = sc.f[F_TIME];
  for (int l = 0; l < 2; l++) {
    float sc2 = 4.f + 3.f * l;
    float u = (sx + yaw * .62f) * sc2 + .3f * sinf(tm * .9f + sy * 2.f), v = sy * sc2 - tm * (.45f + .2f * l);
    int iu = (int)floorf(u), iv = (int)floorf(v);
    uint32_t hh = hash3i(iu, iv, sc.seed ^ (111u + l));
    float du = u - iu - .25f - .5f * u01(hh), dv = v - iv - .25f - .5f * u01(nexth(hh));
    float r2 = du * du + dv * dv;
    float tw = .6f + .4f * sinf(tm * 5.f + 6.28f * u01(nexth(hh ^ 2u)));
    V3 c2 = mix(v3(.35f, .75f, 1.2f), v3(.85f, .40f, 1.2f), u01(nexth(hh ^ 4u)));
    if (u01(nexth(hh ^ 9u)) < .60f)
      col = col + c2 * (sc.f[F_MAGIC] * tw * (sstep(.009f, .001f, r2) + .28f * sstep(.08f, .0f, r2)));
  }
  return col;
}

// Blowing sand.
HD V3 sand_layer(V3 col, float sx, float sy, float depth, const Scene &sc) {
  float yaw = sc.f[F_YAW], tm = sc.f[F_TIME];
  float n = .6f * vnoise(sx * 2.2f - tm * 3.1f + yaw * 1.3f, sy * 5.f, sc.seed ^ 121u) +
            .4f * vnoise(sx * 5.f - tm * 5.2f + yaw * 3.f, sy * 13.f, sc.seed ^ 122u);
  V3 sd = v3(.86f, .62f, .34f) * (sc.ambient * .9f + sc.sun_color * .55f + v3(.10f, .09f, .07f) * sc.night);
  col = mix(col, sd, depth * sc.f[F_SAND] * sat(.14f + .80f * (n - .28f)));
  return col;
}

// Banks of mist that drift over the lower half.
HD V3 mist_layer(V3 col, float sx, float sy, float depth, const Scene &sc) {
  float n = vnoise((sx + sc.f[F_YAW] * .62f) * 1.7f + sc.f[F_TIME] * .35f, sy * 4.5f, sc.seed ^ 131u);
  float band = sstep(.42f, .05f, fabsf(sy + .04f));
  return mix(col, sc.fog_color * 1.12f, depth * sc.f[F_MIST] * band * sat(.12f + .75f * (n - .25f)));
}

// All particles; (sx, sy) is the place in the picture. Sand lies behind drops and flakes, or it would hide them.
// own: the pixel shows the player, who stands before most of the mist and sand.
HD V3 particles(V3 col, float sx, float sy, bool own, const Scene &sc) {
  float depth = own ? .35f : 1.f;
  if (sc.f[F_MIST] > .01f)
    col = mist_layer(col, sx, sy, depth, sc);
  if (sc.f[F_SAND] > .01f)
    col = sand_layer(col, sx, sy, depth, sc);
  if (sc.f[F_RAIN] > .01f)
    col = rain_layers(col, sx, sy, sc);
  if (sc.f[F_SNOW] > .01f)
    col = snow_layers(col, sx, sy, sc);
  if (sc.f[F_EMBER] > .01f)
    col = ember_layers(col, sx, sy, sc);
  if (sc.f[F_MAGIC] > .01f)
    col = magic_layers(col, sx, sy, sc);
  return col;
}
