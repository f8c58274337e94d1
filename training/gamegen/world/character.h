// The player's character in third person. Each wears the session's color over most of what a camera behind it sees.
#pragma once
#include "object_hits.h"
#include "pose.h"

HD V3 ccol(int c) {
  switch (c) {
  case 0:
    return v3(.88f, .05f, .06f);
  case 1:
    return v3(.05f, .17f, .96f);
  case 2:
    return v3(.03f, .62f, .10f);
  default:
    return v3(1.0f, .66f, .02f);
  }
}

#define STEEL v3(.62f, .65f, .70f)
#define DARK v3(.15f, .16f, .19f)
#define SKIN v3(.86f, .62f, .46f)
#define HIDE v3(.38f, .23f, .13f)
#define MANE v3(.12f, .08f, .06f)
#define WOOD v3(.36f, .23f, .12f)
#define WHITE v3(.86f, .88f, .90f)
#define BLACK v3(0, 0, 0)
#define GLOW v3(.75f, .90f, 1.f)

// Thighs and shins of a walker.
HD void legs(Hit &g, V3 ro, V3 rd, const Figure &f, float r, V3 thigh, V3 shin, float spec) {
  for (int i = 0; i < 2; i++) {
    capsule(g, ro, rd, f.j[J_LHIP + i], f.j[J_LKNEE + i], r, thigh, BLACK, spec);
    capsule(g, ro, rd, f.j[J_LKNEE + i], f.j[J_LFOOT + i], r * .92f, shin, BLACK, spec);
  }
}

HD void robot(Hit &g, V3 ro, V3 rd, const Figure &f, V3 cc) {
  float b = f.bob;
  legs(g, ro, rd, f, .135f, cc, DARK, .3f);
  ell(g, ro, rd, v3(0, 1.22f + b, 0), v3(.40f, .45f, .29f), cc, BLACK, .4f);
  ell(g, ro, rd, v3(0, 1.24f + b, -.26f), v3(.15f, .20f, .10f), WHITE, BLACK, .4f);
  for (int i = 0; i < 2; i++) {
    ell(g, ro, rd, f.j[J_LSHOULDER + i], v3(.17f, .17f, .17f), cc, BLACK, .4f);
    capsule(g, ro, rd, f.j[J_LSHOULDER + i], f.j[J_LHAND + i], .105f, WHITE, BLACK, .4f);
    ell(g, ro, rd, f.j[J_LHAND + i], v3(.15f, .17f, .15f), cc, BLACK, .4f);
  }
  boxr(g, ro, rd, v3(0, 1.86f + b, 0), v3(.24f, .19f, .21f), 0, WHITE, BLACK, .4f, 0);
  boxr(g, ro, rd, v3(0, 1.88f + b, 0), v3(.25f, .06f, .22f), 0, cc, BLACK, .2f, 0);
  boxr(g, ro, rd, v3(0, 1.88f + b, .2f), v3(.17f, .06f, .04f), 0, v3(.1f, .8f, 1.f), v3(.1f, .8f, 1.f), 0, 0);
  capsule(g, ro, rd, v3(.12f, 2.05f + b, 0), v3(.12f, 2.28f + b, 0), .02f, DARK, BLACK, 0);
  ell(g, ro, rd, v3(.12f, 2.32f + b, 0), v3(.07f, .07f, .07f), cc, cc * .6f, 0);
}

HD void knight(Hit &g, V3 ro, V3 rd, const Figure &f, V3 cc) {
  float b = f.bob, wave = .05f * sinf(f.phase) * f.pace;
  legs(g, ro, rd, f, .13f, STEEL * .8f, STEEL * .8f, .4f);
  ell(g, ro, rd, v3(0, 1.2f + b, 0), v3(.33f, .42f, .24f), cc, BLACK, .1f);
  ell(g, ro, rd, v3(wave, .98f + b, -.27f - .10f * f.pace), v3(.43f, .68f, .10f), cc, BLACK, 0);
  ell(g, ro, rd, v3(-wave, .70f + b, -.29f - .14f * f.pace), v3(.47f, .50f, .07f), cc, BLACK, 0);
  for (int i = 0; i < 2; i++) {
    ell(g, ro, rd, f.j[J_LSHOULDER + i], v3(.17f, .15f, .18f), STEEL * 1.1f, BLACK, .6f);
    capsule(g, ro, rd, f.j[J_LSHOULDER + i], f.j[J_LHAND + i], .11f, STEEL, BLACK, .5f);
  }
  ell(g, ro, rd, f.j[J_HEAD], v3(.21f, .25f, .23f), STEEL * 1.1f, BLACK, .7f);
  ell(g, ro, rd, v3(0, 2.10f + b, -.10f), v3(.08f, .20f, .26f), cc, BLACK, .05f);
  V3 hand = f.j[J_RHAND];
  capsule(g, ro, rd, hand + v3(.02f, -.06f, .04f), hand + v3(.16f, .80f, .20f), .04f, v3(.85f, .88f, .95f), BLACK,
          .8f);
}

HD void horse(Hit &g, V3 ro, V3 rd, const Figure &f, V3 cc) {
  float b = f.bob, ground = f.pace * (1 - f.air);
  float s1 = sinf(f.phase) * .38f * ground + f.air * .35f, s2 = sinf(f.phase + 2.2f) * .38f * ground - f.air * .3f;
  capsule(g, ro, rd, v3(0, 1.12f + b, -.55f), v3(0, 1.15f + b, .5f), .38f, HIDE, BLACK, .1f);
  capsule(g, ro, rd, v3(-.2f, .95f, .5f), v3(-.2f, .1f, .5f + s1), .11f, HIDE * .8f, BLACK, 0);
  capsule(g, ro, rd, v3(.2f, .95f, .5f), v3(.2f, .1f, .5f + s2), .11f, HIDE * .8f, BLACK, 0);
  capsule(g, ro, rd, v3(-.2f, .95f, -.6f), v3(-.2f, .1f, -.6f - s2), .12f, HIDE * .8f, BLACK, 0);
  capsule(g, ro, rd, v3(.2f, .95f, -.6f), v3(.2f, .1f, -.6f - s1), .12f, HIDE * .8f, BLACK, 0);
  capsule(g, ro, rd, v3(0, 1.3f + b, .7f), v3(0, 1.9f + b, 1.1f), .19f, HIDE, BLACK, .1f);
  capsule(g, ro, rd, v3(0, 1.95f + b, 1.1f), v3(0, 1.78f + b, 1.5f), .15f, HIDE, BLACK, .1f);
  capsule(g, ro, rd, v3(0, 1.5f + b, .6f), v3(0, 2.08f + b, 1.0f), .08f, MANE, BLACK, 0);
  capsule(g, ro, rd, v3(0, 1.38f + b, -.98f), v3(.1f * sinf(f.phase * .5f), .72f, -1.30f), .085f, MANE, BLACK, 0);
  ell(g, ro, rd, v3(0, 1.19f + b, -.42f), v3(.46f, .41f, .68f), cc, BLACK, .02f); // blanket
}

HD void rider(Hit &g, V3 ro, V3 rd, const Figure &f, V3 cc) {
  float b = f.bob;
  horse(g, ro, rd, f, cc);
  ell(g, ro, rd, v3(0, 1.85f + b, -.05f), v3(.32f, .44f, .25f), cc, BLACK, .1f);
  for (int i = 0; i < 2; i++) {
    capsule(g, ro, rd, f.j[J_LSHOULDER + i], f.j[J_LHAND + i], .10f, cc, BLACK, .1f);
    capsule(g, ro, rd, f.j[J_LHIP + i], f.j[J_LKNEE + i], .12f, DARK * 1.5f, BLACK, .1f);
    capsule(g, ro, rd, f.j[J_LKNEE + i], f.j[J_LFOOT + i], .10f, MANE, BLACK, .1f);
  }
  ell(g, ro, rd, f.j[J_HEAD], v3(.18f, .21f, .19f), SKIN, BLACK, .1f);
  ell(g, ro, rd, v3(0, 2.53f + b, -.04f), v3(.36f, .055f, .36f), WOOD, BLACK, .1f);
  frus(g, ro, rd, 0, -.04f, 2.53f + b, 2.63f + b, .23f, .22f, cc, BLACK, .1f);
  ell(g, ro, rd, v3(0, 2.62f + b, -.04f), v3(.215f, .13f, .215f), WOOD, BLACK, .1f);
}

HD void wizard(Hit &g, V3 ro, V3 rd, const Figure &f, V3 cc) {
  float b = f.bob, sway = .06f * sinf(f.phase) * f.pace;
  frus(g, ro, rd, 0, 0, .10f + b, 1.16f + b, .50f, .25f, cc, BLACK, .02f);
  ell(g, ro, rd, v3(sway, .46f + b, -.10f - .12f * f.pace), v3(.44f, .40f, .44f), cc, BLACK, .02f);
  ell(g, ro, rd, v3(0, 1.22f + b, 0), v3(.32f, .36f, .26f), cc, BLACK, .02f);
  frus(g, ro, rd, 0, 0, .98f + b, 1.06f + b, .325f, .315f, MANE, BLACK, .1f);
  for (int i = 0; i < 2; i++) {
    V3 a = f.j[J_LSHOULDER + i], h = f.j[J_LHAND + i], w = mix(a, h, .82f);
    capsule(g, ro, rd, a, w, .12f, cc, BLACK, .02f);
    ell(g, ro, rd, w, v3(.16f, .17f, .16f), cc, BLACK, .02f);
    ell(g, ro, rd, h, v3(.09f, .09f, .09f), SKIN, BLACK, .05f);
    ell(g, ro, rd, f.j[J_LFOOT + i] + v3(0, -.02f, .06f), v3(.11f, .10f, .20f), MANE, BLACK, .05f);
  }
  ell(g, ro, rd, f.j[J_HEAD], v3(.20f, .22f, .20f), SKIN, BLACK, .05f);
  ell(g, ro, rd, v3(0, 1.60f + b, -.05f), v3(.22f, .26f, .20f), WHITE, BLACK, .05f); // hair
  ell(g, ro, rd, v3(0, 1.44f + b, .20f), v3(.15f, .28f, .10f), WHITE, BLACK, .05f);  // beard
  ell(g, ro, rd, v3(0, 1.82f + b, 0), v3(.44f, .06f, .44f), cc, BLACK, .02f);
  frus(g, ro, rd, 0, 0, 1.83f + b, 1.91f + b, .245f, .225f, MANE, BLACK, .1f);
  frus(g, ro, rd, 0, 0, 1.91f + b, 2.50f + b, .225f, .015f, cc, BLACK, .02f);
  V3 hand = f.j[J_RHAND];
  capsule(g, ro, rd, hand + v3(.02f, -.98f, .02f), hand + v3(.05f, 1.02f, .06f), .045f, WOOD, BLACK, .05f);
  ell(g, ro, rd, hand + v3(.05f, 1.12f, .06f), v3(.13f, .13f, .13f), GLOW, GLOW * 1.2f, 0);
}

HDN void hit_char(Hit &h, V3 ro, V3 rd, const float *F) {
  int type = (int)F[F_CHAR];
  V3 oc = ro - v3(F[F_PX], F[F_PY] + (type == CH_RIDER ? 1.3f : 1.2f), F[F_PZ]);
  float br = type == CH_RIDER ? 2.1f : 1.65f;
  float b = dot(oc, rd), c = dot(oc, oc) - br * br;
  if (b * b - c < 0)
    return;
  float cs = cosf(F[F_PYAW]), sn = sinf(F[F_PYAW]), cl = cosf(F[F_ROLL]), sl = sinf(F[F_ROLL]);
  // to local space: x right, z forward
  V3 o = ro - v3(F[F_PX], F[F_PY], F[F_PZ]);
  V3 o1 = v3(cs * o.x - sn * o.z, o.y, sn * o.x + cs * o.z),
     d1 = v3(cs * rd.x - sn * rd.z, rd.y, sn * rd.x + cs * rd.z);
  V3 lo = v3(cl * o1.x + sl * o1.y, -sl * o1.x + cl * o1.y, o1.z),
     ld = v3(cl * d1.x + sl * d1.y, -sl * d1.x + cl * d1.y, d1.z);
  Figure f = figure_of(F);
  V3 cc = ccol((int)F[F_COL]);
  Hit g = h;
  switch (type) {
  case CH_ROBOT:
    robot(g, lo, ld, f, cc);
    break;
  case CH_KNIGHT:
    knight(g, lo, ld, f, cc);
    break;
  case CH_RIDER:
    rider(g, lo, ld, f, cc);
    break;
  default:
    wizard(g, lo, ld, f, cc);
    break;
  }
  if (g.t < h.t) {
    g.n = figure_to_world(g.n, F);
    h = g;
  }
}
