// First person: arms, what they hold and what is ridden, in camera space (x right, y up, z forward).
// Sleeves in the session's color fill the lower corners, so that it is always in the picture.
#pragma once
#include "character.h"

HD void robot_arms(Hit &g, V3 ld, V3 s, V3 cc) {
  V3 O = v3(0, 0, 0);
  capsule(g, O, ld, s + v3(.52f, -.50f, .50f), s + v3(.34f, -.33f, .86f), .135f, cc, BLACK, .3f);
  capsule(g, O, ld, s + v3(.33f, -.32f, .90f), s + v3(.29f, -.27f, 1.06f), .10f, WHITE, BLACK, .5f);
  ell(g, O, ld, s + v3(.28f, -.25f, 1.15f), v3(.07f, .07f, .07f), v3(.1f, .8f, 1), v3(.1f, .8f, 1), 0);
  capsule(g, O, ld, s + v3(-.56f, -.54f, .55f), s + v3(-.42f, -.42f, .86f), .12f, cc, BLACK, .3f);
  ell(g, O, ld, s + v3(-.40f, -.40f, .96f), v3(.09f, .09f, .10f), WHITE, BLACK, .5f);
}

HD void knight_arms(Hit &g, V3 ld, V3 s, V3 cc) {
  V3 O = v3(0, 0, 0);
  capsule(g, O, ld, s + v3(.56f, -.54f, .50f), s + v3(.42f, -.40f, .84f), .14f, cc, BLACK, .05f);
  ell(g, O, ld, s + v3(.39f, -.36f, .90f), v3(.10f, .10f, .11f), STEEL, BLACK, .6f);
  capsule(g, O, ld, s + v3(.27f, -.26f, .95f), s + v3(.47f, -.30f, .92f), .030f, STEEL * 1.2f, BLACK, .6f);
  capsule(g, O, ld, s + v3(.38f, -.32f, .92f), s + v3(.25f, .10f, 1.1f), .035f, v3(.85f, .88f, .95f), BLACK, .9f);
  // the upper half of a round shield
  ell(g, O, ld, s + v3(-.52f, -.50f, .92f), v3(.30f, .26f, .10f), cc, BLACK, .1f);
  ell(g, O, ld, s + v3(-.52f, -.47f, .86f), v3(.09f, .09f, .08f), STEEL, BLACK, .6f);
}

HD void rider_arms(Hit &g, V3 ld, V3 s, V3 cc) {
  V3 O = v3(0, 0, 0);
  capsule(g, O, ld, s + v3(0, -.85f, .6f), s + v3(0, -.42f, 1.25f), .18f, HIDE, BLACK, .1f);
  capsule(g, O, ld, s + v3(0, -.37f, 1.25f), s + v3(0, -.45f, 1.75f), .13f, HIDE * .9f, BLACK, .1f);
  capsule(g, O, ld, s + v3(0, -.64f, .7f), s + v3(0, -.23f, 1.22f), .06f, MANE, BLACK, 0);
  capsule(g, O, ld, s + v3(0, -.80f, .68f), s + v3(0, -.55f, 1.02f), .215f, cc, BLACK, .02f); // the horse's cloth
  for (int i = 0; i < 2; i++) {
    float k = i ? 1.f : -1.f;
    capsule(g, O, ld, s + v3(.10f * k, -.27f, 1.25f), s + v3(.12f * k, -.16f, 1.27f), .04f, HIDE, BLACK, 0);
    capsule(g, O, ld, s + v3(.58f * k, -.52f, .50f), s + v3(.29f * k, -.42f, .84f), .150f, cc, BLACK, .1f);
    ell(g, O, ld, s + v3(.24f * k, -.37f, .90f), v3(.07f, .07f, .08f), SKIN, BLACK, .1f);
    capsule(g, O, ld, s + v3(.22f * k, -.36f, .92f), s + v3(.10f * k, -.40f, 1.60f), .012f, MANE, BLACK, 0);
  }
}

HD void wizard_arms(Hit &g, V3 ld, V3 s, V3 cc) {
  V3 O = v3(0, 0, 0);
  capsule(g, O, ld, s + v3(.58f, -.60f, .50f), s + v3(.40f, -.39f, .84f), .145f, cc, BLACK, .02f);
  ell(g, O, ld, s + v3(.38f, -.34f, .90f), v3(.075f, .075f, .08f), SKIN, BLACK, .05f);
  capsule(g, O, ld, s + v3(.44f, -.70f, .84f), s + v3(.28f, .06f, 1.00f), .035f, WOOD, BLACK, .05f);
  ell(g, O, ld, s + v3(.27f, .11f, 1.01f), v3(.075f, .075f, .075f), GLOW, GLOW * 1.2f, 0);
  capsule(g, O, ld, s + v3(-.60f, -.58f, .55f), s + v3(-.44f, -.42f, .84f), .13f, cc, BLACK, .02f);
  ell(g, O, ld, s + v3(-.40f, -.38f, .94f), v3(.075f, .06f, .09f), SKIN, BLACK, .05f);
}

HDN bool hit_fp(Hit &h, V3 ld, const float *F) {
  if (ld.y > .26f * ld.z)
    return false;
  float pace = sat(fabsf(F[F_SPEED]) / 4.f);
  V3 s = v3(sinf(F[F_PHASE]) * .02f * pace, fabsf(cosf(F[F_PHASE])) * .03f * pace + F[F_AIR] * .09f, 0);
  V3 cc = ccol((int)F[F_COL]);
  Hit g = h;
  g.t = 10.f;
  switch ((int)F[F_CHAR]) {
  case CH_ROBOT:
    robot_arms(g, ld, s, cc);
    break;
  case CH_KNIGHT:
    knight_arms(g, ld, s, cc);
    break;
  case CH_RIDER:
    rider_arms(g, ld, s, cc);
    break;
  default:
    wizard_arms(g, ld, s, cc);
    break;
  }
  if (g.t >= 9.f)
    return false;
  h = g;
  return true;
}
