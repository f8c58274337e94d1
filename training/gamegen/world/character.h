// The player's character, and what is held or ridden in first person.
#pragma once
#include "object_hits.h"

// ------------------------------------------------------------------ character
HD V3 ccol(int c) {
  switch (c) {
  case 0:
    return v3(.82f, .14f, .12f);
  case 1:
    return v3(.12f, .30f, .86f);
  case 2:
    return v3(.12f, .62f, .22f);
  default:
    return v3(.94f, .68f, .12f);
  }
}

HDN void hit_char(Hit &h, V3 ro, V3 rd, const float *F) {
  float px = F[F_PX], py = F[F_PY], pz = F[F_PZ];
  int type = (int)F[F_CHAR];
  V3 cc = ccol((int)F[F_COL]);
  V3 bc = v3(px, py + (type == 2 ? 1.3f : 1.f), pz);
  V3 oc = ro - bc;
  float br = type == 2 ? 2.1f : 1.45f;
  float b = dot(oc, rd), c = dot(oc, oc) - br * br;
  if (b * b - c < 0)
    return;
  float cs = cosf(F[F_PYAW]), sn = sinf(F[F_PYAW]);
  // to local space: x right, z forward
  V3 o = ro - v3(px, py, pz);
  float rl = F[F_ROLL], cl = cosf(rl), sl = sinf(rl);
  V3 o1 = v3(cs * o.x - sn * o.z, o.y, sn * o.x + cs * o.z),
     d1 = v3(cs * rd.x - sn * rd.z, rd.y, sn * rd.x + cs * rd.z);
  V3 lo = v3(cl * o1.x + sl * o1.y, -sl * o1.x + cl * o1.y, o1.z),
     ld = v3(cl * d1.x + sl * d1.y, -sl * d1.x + cl * d1.y, d1.z);
  float ph = F[F_PHASE], sp = sat(fabsf(F[F_SPEED]) / 4.f), air = F[F_AIR];
  float sw = sinf(ph) * .42f * sp * (1.f - air) + .3f * air, bob = fabsf(cosf(ph)) * .05f * sp;
  V3 Z = v3(0, 0, 0), steel = v3(.62f, .65f, .70f), dark = v3(.16f, .17f, .20f), skin = v3(.86f, .62f, .46f);
  Hit g = h;
  float t0 = h.t;
  if (type == 0) { // robot
    V3 w = v3(.86f, .88f, .90f);
    capsule(g, lo, ld, v3(-.17f, .85f, 0), v3(-.19f, .12f, sw), .13f, dark, Z, .3f);
    capsule(g, lo, ld, v3(.17f, .85f, 0), v3(.19f, .12f, -sw), .13f, dark, Z, .3f);
    ell(g, lo, ld, v3(0, 1.22f + bob, 0), v3(.36f, .44f, .27f), cc, Z, .5f);
    ell(g, lo, ld, v3(0, 1.26f + bob, -.22f), v3(.22f, .26f, .14f), w, Z, .4f);
    capsule(g, lo, ld, v3(-.42f, 1.42f + bob, 0), v3(-.50f, .86f + air * .5f, -sw * .9f), .10f, w, Z, .4f);
    capsule(g, lo, ld, v3(.42f, 1.42f + bob, 0), v3(.50f, .86f + air * .5f, sw * .9f), .10f, w, Z, .4f);
    boxr(g, lo, ld, v3(0, 1.86f + bob, 0), v3(.23f, .19f, .21f), 0, w, Z, .4f, 0);
    boxr(g, lo, ld, v3(0, 1.88f + bob, .2f), v3(.17f, .06f, .04f), 0, v3(.1f, .8f, 1.f), v3(.1f, .8f, 1.f), 0,
         0);
    capsule(g, lo, ld, v3(.12f, 2.05f + bob, 0), v3(.12f, 2.28f + bob, 0), .02f, dark, Z, 0);
    ell(g, lo, ld, v3(.12f, 2.32f + bob, 0), v3(.06f, .06f, .06f), cc, cc * .9f, 0);
  } else if (type == 1) { // knight with cape
    capsule(g, lo, ld, v3(-.16f, .88f, 0), v3(-.17f, .12f, sw), .13f, steel * .8f, Z, .4f);
    capsule(g, lo, ld, v3(.16f, .88f, 0), v3(.17f, .12f, -sw), .13f, steel * .8f, Z, .4f);
    ell(g, lo, ld, v3(0, 1.2f + bob, 0), v3(.33f, .42f, .24f), steel, Z, .6f);
    ell(g, lo, ld, v3(0, 1.02f + bob, -.25f - .1f * sp), v3(.34f, .58f, .09f), cc, Z, .05f);
    capsule(g, lo, ld, v3(-.40f, 1.42f + bob, 0), v3(-.46f, .88f + air * .4f, -sw * .9f), .11f, steel, Z,
            .5f);
    capsule(g, lo, ld, v3(.40f, 1.42f + bob, 0), v3(.46f, .92f + air * .4f, .15f + sw * .6f), .11f, steel, Z,
            .5f);
    ell(g, lo, ld, v3(0, 1.80f + bob, 0), v3(.21f, .25f, .23f), steel * 1.1f, Z, .7f);
    ell(g, lo, ld, v3(0, 2.06f + bob, -.06f), v3(.05f, .14f, .18f), cc, Z, .1f);
    capsule(g, lo, ld, v3(.48f, .85f + air * .4f, .2f + sw * .6f),
            v3(.62f, 1.7f + air * .4f, .35f + sw * .6f), .04f, v3(.85f, .88f, .95f), Z, .8f);
  } else { // rider on a horse
    V3 hs = v3(.38f, .23f, .13f), mane = v3(.12f, .08f, .06f);
    float s1 = sinf(ph) * .38f * sp * (1 - air) + air * .35f,
          s2 = sinf(ph + 2.2f) * .38f * sp * (1 - air) - air * .3f;
    capsule(g, lo, ld, v3(0, 1.12f + bob, -.55f), v3(0, 1.15f + bob, .5f), .38f, hs, Z, .1f);
    capsule(g, lo, ld, v3(-.2f, .95f, .5f), v3(-.2f, .1f, .5f + s1), .11f, hs * .8f, Z, 0);
    capsule(g, lo, ld, v3(.2f, .95f, .5f), v3(.2f, .1f, .5f + s2), .11f, hs * .8f, Z, 0);
    capsule(g, lo, ld, v3(-.2f, .95f, -.6f), v3(-.2f, .1f, -.6f - s2), .12f, hs * .8f, Z, 0);
    capsule(g, lo, ld, v3(.2f, .95f, -.6f), v3(.2f, .1f, -.6f - s1), .12f, hs * .8f, Z, 0);
    capsule(g, lo, ld, v3(0, 1.3f + bob, .7f), v3(0, 1.9f + bob, 1.1f), .19f, hs, Z, .1f);
    capsule(g, lo, ld, v3(0, 1.95f + bob, 1.1f), v3(0, 1.78f + bob, 1.5f), .15f, hs, Z, .1f);
    capsule(g, lo, ld, v3(0, 1.5f + bob, .6f), v3(0, 2.08f + bob, 1.0f), .08f, mane, Z, 0);
    capsule(g, lo, ld, v3(0, 1.3f + bob, -.9f), v3(.1f * sinf(ph * .5f), .75f, -1.25f), .09f, mane, Z, 0);
    ell(g, lo, ld, v3(0, 1.85f + bob, -.05f), v3(.29f, .42f, .22f), cc, Z, .1f);
    ell(g, lo, ld, v3(0, 2.42f + bob, -.05f), v3(.18f, .21f, .19f), skin, Z, .1f);
    ell(g, lo, ld, v3(0, 2.54f + bob, -.06f), v3(.26f, .10f, .26f), mane * 1.6f, Z, .1f);
    capsule(g, lo, ld, v3(-.30f, 2.05f + bob, 0), v3(-.22f, 1.62f + bob, .4f), .08f, cc, Z, .1f);
    capsule(g, lo, ld, v3(.30f, 2.05f + bob, 0), v3(.22f, 1.62f + bob, .4f), .08f, cc, Z, .1f);
    capsule(g, lo, ld, v3(-.36f, 1.5f + bob, 0), v3(-.42f, .95f + bob, .1f), .11f, dark * 1.5f, Z, .1f);
    capsule(g, lo, ld, v3(.36f, 1.5f + bob, 0), v3(.42f, .95f + bob, .1f), .11f, dark * 1.5f, Z, .1f);
  }
  if (g.t < t0) {
    V3 n = v3(cl * g.n.x - sl * g.n.y, sl * g.n.x + cl * g.n.y, g.n.z);
    g.n = v3(cs * n.x + sn * n.z, n.y, -sn * n.x + cs * n.z);
    h = g;
  }
}

// first-person: something held or ridden, in camera space (x right, y up, z forward)
HDN bool hit_fp(Hit &h, V3 ld, const float *F) {
  if (ld.y > .05f && ld.z > .0f && fabsf(ld.x) < .05f && (int)F[F_CHAR] != 2)
    return false;
  int type = (int)F[F_CHAR];
  V3 cc = ccol((int)F[F_COL]);
  float ph = F[F_PHASE], sp = sat(fabsf(F[F_SPEED]) / 4.f), air = F[F_AIR];
  V3 O = v3(0, 0, 0), Z = v3(0, 0, 0);
  float bx = sinf(ph) * .02f * sp, by = fabsf(cosf(ph)) * .03f * sp + air * .12f;
  Hit g = h;
  g.t = 10.f;
  if (type == 0) {
    capsule(g, O, ld, v3(.42f + bx, -.46f + by, .4f), v3(.30f + bx, -.27f + by, .95f), .11f,
            v3(.86f, .88f, .9f), Z, .5f);
    capsule(g, O, ld, v3(.31f + bx, -.28f + by, .9f), v3(.285f + bx, -.25f + by, 1.02f), .13f, cc, Z, .5f);
    ell(g, O, ld, v3(.28f + bx, -.243f + by, 1.13f), v3(.07f, .07f, .07f), v3(.1f, .8f, 1), v3(.1f, .8f, 1),
        0);
  } else if (type == 1) {
    capsule(g, O, ld, v3(.46f + bx, -.52f + by, .5f), v3(.38f + bx, -.36f + by, .9f), .09f,
            v3(.6f, .63f, .68f), Z, .5f);
    capsule(g, O, ld, v3(.26f + bx, -.27f + by, .93f), v3(.48f + bx, -.33f + by, .9f), .035f, cc, Z, .3f);
    capsule(g, O, ld, v3(.38f + bx, -.32f + by, .92f), v3(.25f + bx, .10f + by, 1.1f), .035f,
            v3(.85f, .88f, .95f), Z, .9f);
  } else {
    V3 hs = v3(.38f, .23f, .13f);
    capsule(g, O, ld, v3(bx, -.85f + by, .6f), v3(bx, -.38f + by, 1.25f), .19f, hs, Z, .1f);
    capsule(g, O, ld, v3(bx, -.34f + by, 1.25f), v3(bx, -.42f + by, 1.75f), .13f, hs * .9f, Z, .1f);
    capsule(g, O, ld, v3(bx, -.62f + by, .7f), v3(bx, -.20f + by, 1.22f), .06f, v3(.12f, .08f, .06f), Z, 0);
    capsule(g, O, ld, v3(-.10f + bx, -.24f + by, 1.25f), v3(-.12f + bx, -.13f + by, 1.27f), .04f, hs, Z, 0);
    capsule(g, O, ld, v3(.10f + bx, -.24f + by, 1.25f), v3(.12f + bx, -.13f + by, 1.27f), .04f, hs, Z, 0);
    capsule(g, O, ld, v3(-.4f, -.5f + by, .5f), v3(-.16f + bx, -.42f + by, .85f), .07f, cc, Z, .1f);
    capsule(g, O, ld, v3(.4f, -.5f + by, .5f), v3(.16f + bx, -.42f + by, .85f), .07f, cc, Z, .1f);
  }
  if (g.t < 9.f) {
    h = g;
    return true;
  }
  return false;
}
