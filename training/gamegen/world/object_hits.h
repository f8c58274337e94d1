// Rays against the objects of a cell.
#pragma once
#include "objects.h"
#include "primitives.h"

HDN void hit_object(Hit &h, V3 ro, V3 rd, const Obj &o, int bi, float night) {
  // bounding: vertical cylinder
  float ox = ro.x - o.x, oz = ro.z - o.z, a = rd.x * rd.x + rd.z * rd.z, b = ox * rd.x + oz * rd.z,
        c = ox * ox + oz * oz - o.rad * o.rad * 1.1f;
  if (b * b - a * c < 0)
    return;
  V3 Z = v3(0, 0, 0);
  float s = o.s, y = o.y - .35f;
  float hv = u01(nexth(o.h)), hv2 = u01(nexth(o.h ^ 0x1234u));
  float cr = cosf(o.rot), sr = sinf(o.rot);
  switch (o.type) {
  case OB_TREE: {
    V3 leaf = bi == BI_FOREST ? mix(v3(.46f, .22f, .06f), v3(.22f, .36f, .08f), hv)
                              : mix(v3(.16f, .42f, .11f), v3(.36f, .52f, .12f), hv);
    if (bi == BI_MEADOW && hv2 < .16f)
      leaf = v3(.80f, .46f, .56f); // blossom
    frus(h, ro, rd, o.x, o.z, y, y + 3.2f * s, .34f * s, .22f * s, v3(.30f, .20f, .12f), Z, 0);
    ell(h, ro, rd, v3(o.x, y + 4.5f * s, o.z), v3(1.9f * s, 1.55f * s, 1.9f * s), leaf, Z, 0);
    ell(h, ro, rd, v3(o.x + .9f * s * cr, y + 3.6f * s, o.z + .9f * s * sr),
        v3(1.25f * s, 1.0f * s, 1.25f * s), leaf * .92f, Z, 0);
    ell(h, ro, rd, v3(o.x - .7f * s * cr, y + 5.5f * s, o.z - .7f * s * sr),
        v3(1.15f * s, 1.05f * s, 1.15f * s), leaf * 1.06f, Z, 0);
    break;
  }
  case OB_PINE: {
    V3 leaf = bi == BI_SNOW ? mix(v3(.16f, .30f, .26f), v3(.24f, .38f, .32f), hv)
                            : mix(v3(.08f, .24f, .10f), v3(.15f, .32f, .11f), hv);
    V3 cap = bi == BI_SNOW ? v3(.90f, .94f, .98f) : leaf * 1.2f;
    frus(h, ro, rd, o.x, o.z, y, y + 1.8f * s, .28f * s, .22f * s, v3(.26f, .17f, .11f), Z, 0);
    frus(h, ro, rd, o.x, o.z, y + 1.3f * s, y + 4.1f * s, 1.95f * s, .5f * s, leaf, Z, 0);
    frus(h, ro, rd, o.x, o.z, y + 3.1f * s, y + 6.0f * s, 1.55f * s, .3f * s,
         bi == BI_SNOW ? mix(leaf, cap, .45f) : leaf * 1.08f, Z, 0);
    frus(h, ro, rd, o.x, o.z, y + 4.9f * s, y + 8.0f * s, 1.1f * s, .02f, cap, Z, 0);
    break;
  }
  case OB_ROCK: {
    V3 col = biome_of(bi).rock * (1.0f + .35f * hv);
    if (bi == BI_SNOW)
      col = mix(col, v3(.75f, .8f, .86f), .3f);
    ell(h, ro, rd, v3(o.x, y + .55f * s, o.z), v3(1.55f * s, 1.15f * s, 1.3f * s), col, Z, .05f);
    ell(h, ro, rd, v3(o.x + .75f * s * cr, y + .4f * s, o.z + .75f * s * sr), v3(.95f * s, .8f * s, .95f * s),
        col * .85f, Z, .05f);
    break;
  }
  case OB_HOUSE: {
    V3 wall = bi == BI_DESERT ? v3(.80f, .62f, .42f)
              : bi == BI_SNOW ? v3(.46f, .31f, .20f)
                              : mix(v3(.84f, .78f, .66f), v3(.74f, .62f, .48f), hv);
    V3 rf = bi == BI_SNOW     ? v3(.90f, .93f, .97f)
            : bi == BI_DESERT ? v3(.62f, .40f, .26f)
                              : mix(v3(.62f, .20f, .14f), v3(.26f, .32f, .46f), hv2 > .5f ? 1.f : 0.f);
    V3 lp;
    if (boxr(h, ro, rd, v3(o.x, y + 1.5f, o.z), v3(1.75f, 1.6f, 2.1f), o.rot, wall, Z, .02f, &lp)) {
      float u = fabsf(lp.x) > 1.74f ? lp.z : lp.x;
      bool win = fabsf(fabsf(u) - .95f) < .34f && fabsf(lp.y - .25f) < .38f && fabsf(lp.y) < 1.59f;
      bool door = fabsf(u) < .38f && lp.y < .3f && fabsf(lp.x) < 1.74f;
      if (win) {
        h.alb = v3(.22f, .28f, .36f);
        h.emi = v3(1.f, .70f, .30f) * (night * 1.0f);
        h.spec = .5f;
      } else if (door)
        h.alb = v3(.32f, .20f, .12f);
    }
    roof(h, ro, rd, v3(o.x, y + 3.05f, o.z), 2.2f, 2.4f, 1.8f, o.rot, rf);
    break;
  }
  case OB_CACTUS: {
    V3 col = mix(v3(.22f, .46f, .20f), v3(.34f, .52f, .24f), hv);
    capsule(h, ro, rd, v3(o.x, y, o.z), v3(o.x, y + 3.8f * s, o.z), .38f * s, col, Z, .05f);
    V3 e1 = v3(o.x + 1.0f * s * cr, y + 1.8f * s, o.z + 1.0f * s * sr),
       e2 = v3(o.x - 1.0f * s * cr, y + 2.2f * s, o.z - 1.0f * s * sr);
    capsule(h, ro, rd, v3(o.x, y + 1.6f * s, o.z), e1, .24f * s, col, Z, .05f);
    capsule(h, ro, rd, e1, e1 + v3(0, 1.3f * s, 0), .24f * s, col, Z, .05f);
    capsule(h, ro, rd, v3(o.x, y + 2.0f * s, o.z), e2, .22f * s, col, Z, .05f);
    capsule(h, ro, rd, e2, e2 + v3(0, 1.0f * s, 0), .22f * s, col, Z, .05f);
    break;
  }
  case OB_CRYSTAL: {
    V3 col = hv < .5f ? v3(.25f, .80f, .90f) : v3(.86f, .36f, .82f);
    V3 em = col * (.22f + .42f * night);
    for (int i = 0; i < 3; i++) {
      float an = o.rot + i * 2.1f,
            hh = (i == 0   ? 5.0f
                  : i == 1 ? 3.2f
                           : 2.4f) *
                 s,
            rr = (i == 0 ? .62f : .45f) * s, dd = i == 0 ? 0.f : .85f * s;
      float x = o.x + dd * cosf(an), z = o.z + dd * sinf(an);
      frus(h, ro, rd, x, z, y, y + hh * .72f, rr * .62f, rr, col, em, .6f);
      frus(h, ro, rd, x, z, y + hh * .72f, y + hh, rr, .02f, col * 1.1f, em * 1.15f, .6f);
    }
    break;
  }
  case OB_MUSH: {
    V3 col = hv < .5f ? v3(.85f, .30f, .38f) : v3(.28f, .66f, .80f);
    frus(h, ro, rd, o.x, o.z, y, y + 4.2f * s, .42f * s, .28f * s, v3(.80f, .74f, .82f), Z, .1f);
    ell(h, ro, rd, v3(o.x, y + 4.2f * s, o.z), v3(2.1f * s, 1.15f * s, 2.1f * s), col,
        col * (.06f + .25f * night), .25f);
    break;
  }
  case OB_DEAD: {
    V3 col = v3(.13f, .10f, .09f);
    V3 a0 = v3(o.x, y, o.z), a1 = v3(o.x + .2f, y + 2.6f * s, o.z);
    capsule(h, ro, rd, a0, a1, .26f * s, col, Z, 0);
    capsule(h, ro, rd, a1, a1 + v3(1.2f * s * cr, 1.6f * s, 1.2f * s * sr), .14f * s, col, Z, 0);
    capsule(h, ro, rd, a1 - v3(0, .5f, 0), a1 + v3(-1.2f * s * cr, 1.1f * s, -1.2f * s * sr), .13f * s, col,
            Z, 0);
    capsule(h, ro, rd, a1, a1 + v3(-.4f * s * sr, 2.0f * s, .5f * s * cr), .12f * s, col, Z, 0);
    break;
  }
  case OB_SPIRE: {
    V3 col = biome_of(bi).rock * (1.15f + .4f * hv);
    frus(h, ro, rd, o.x, o.z, y - .3f, y + 4.0f * s, 1.7f * s, .85f * s, col, Z, .04f);
    frus(h, ro, rd, o.x, o.z, y + 4.0f * s, y + 7.6f * s, .85f * s, .12f, col * 1.1f, Z, .04f);
    if (bi == BI_VOLCANIC && hv2 < .5f)
      ell(h, ro, rd, v3(o.x, y + 7.4f * s, o.z), v3(.45f, .4f, .45f), v3(1, .4f, .1f), v3(1.f, .42f, .08f),
          0);
    break;
  }
  case OB_BUSH: {
    V3 col = mix(v3(.20f, .42f, .12f), v3(.38f, .50f, .14f), hv);
    ell(h, ro, rd, v3(o.x, y + .7f * s, o.z), v3(1.1f * s, .75f * s, 1.0f * s), col, Z, 0);
    V3 fl = hv2 < .33f ? v3(.95f, .85f, .25f) : hv2 < .66f ? v3(.85f, .25f, .30f) : v3(.70f, .45f, .90f);
    ell(h, ro, rd, v3(o.x + .5f * cr, y + 1.15f * s, o.z + .5f * sr), v3(.3f, .25f, .3f), fl, Z, 0);
    ell(h, ro, rd, v3(o.x - .45f * cr, y + 1.2f * s, o.z - .4f * sr), v3(.26f, .22f, .26f), fl, Z, 0);
    break;
  }
  default: { // tower
    V3 col = bi == BI_VOLCANIC ? v3(.25f, .22f, .23f)
             : bi == BI_DESERT ? v3(.74f, .55f, .36f)
                               : v3(.56f, .54f, .52f);
    float before = h.t;
    frus(h, ro, rd, o.x, o.z, y - .5f, y + 6.8f, 1.75f, 1.45f, col, Z, .03f);
    if (h.t < before) {
      V3 p = ro + rd * h.t;
      float an = fractf_(atan2f(p.z - o.z, p.x - o.x) * .95493f + o.rot);
      if (fabsf(an - .5f) < .12f && fractf_((p.y - y) / 2.2f) > .45f && fractf_((p.y - y) / 2.2f) < .8f) {
        h.alb = v3(.12f, .13f, .16f);
        h.emi = v3(1.f, .66f, .26f) * night;
      }
    }
    frus(h, ro, rd, o.x, o.z, y + 6.5f, y + 7.2f, 1.75f, 1.85f, col * .85f, Z, .03f);
    frus(h, ro, rd, o.x, o.z, y + 7.2f, y + 10.3f, 2.0f, .02f,
         bi == BI_SNOW ? v3(.88f, .91f, .96f) : v3(.36f, .24f, .42f), Z, .05f);
    break;
  }
  }
}
