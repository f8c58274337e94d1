// The player's figure: its joints in local space (x right, y up, z forward, metres) and in the picture.
// One animation for what is drawn (character.h) and for the pose sequences.
#pragma once
#include "layout.h"

enum { CH_ROBOT, CH_KNIGHT, CH_RIDER, CH_WIZARD };

enum {
  J_HEAD,
  J_NECK,
  J_LSHOULDER,
  J_RSHOULDER,
  J_LHAND,
  J_RHAND,
  J_LHIP,
  J_RHIP,
  J_LKNEE,
  J_RKNEE,
  J_LFOOT,
  J_RFOOT,
  J_HORSE, // the horse's head; only the rider has one
  NJOINT
};

// Joints of a frame and what the loose parts (capes, tails, horses' legs) need of the gait.
struct Figure {
  V3 j[NJOINT];
  float phase, pace, air, bob;
};

// Half the picture's width over the distance; the camera's only lens.
#define LENS .74f

// Hips, knees and feet of somebody who walks; the foot that comes forward is lifted.
HD void walking_legs(Figure &g, float half, float hip, float swing) {
  float lift = cosf(g.phase) * .20f * g.pace * (1.f - g.air);
  g.j[J_LHIP] = v3(-half, hip, 0);
  g.j[J_RHIP] = v3(half, hip, 0);
  g.j[J_LFOOT] = v3(-half - .02f, .12f + fmaxf(lift, 0.f), swing);
  g.j[J_RFOOT] = v3(half + .02f, .12f + fmaxf(-lift, 0.f), -swing);
  V3 bend = v3(0, .02f, .05f + .06f * g.pace + .10f * g.air);
  g.j[J_LKNEE] = (g.j[J_LHIP] + g.j[J_LFOOT]) * .5f + bend;
  g.j[J_RKNEE] = (g.j[J_RHIP] + g.j[J_RFOOT]) * .5f + bend;
}

HD void upper_body(Figure &g, float head, float neck, float shoulder, float half) {
  g.j[J_HEAD] = v3(0, head + g.bob, 0);
  g.j[J_NECK] = v3(0, neck + g.bob, 0);
  g.j[J_LSHOULDER] = v3(-half, shoulder + g.bob, 0);
  g.j[J_RSHOULDER] = v3(half, shoulder + g.bob, 0);
}

HDN Figure figure_of(const float *F) {
  Figure g;
  int type = (int)F[F_CHAR];
  g.phase = F[F_PHASE];
  g.pace = sat(fabsf(F[F_SPEED]) / 4.f);
  g.air = F[F_AIR];
  g.bob = fabsf(cosf(g.phase)) * .05f * g.pace;
  float swing = sinf(g.phase) * .42f * g.pace * (1.f - g.air) + .3f * g.air, up = g.air * .5f;
  g.j[J_HORSE] = v3(0, 1.88f + g.bob, 1.28f);
  if (type == CH_RIDER) {
    upper_body(g, 2.42f, 2.22f, 2.08f, .29f);
    g.j[J_LHAND] = v3(-.20f, 1.64f + g.bob, .42f);
    g.j[J_RHAND] = v3(.20f, 1.64f + g.bob, .42f);
    for (int i = 0; i < 2; i++) {
      float side = i ? 1.f : -1.f;
      g.j[J_LHIP + i] = v3(.22f * side, 1.52f + g.bob, -.05f);
      g.j[J_LKNEE + i] = v3(.47f * side, 1.28f + g.bob, .22f);
      g.j[J_LFOOT + i] = v3(.49f * side, .84f + g.bob, .08f);
    }
  } else if (type == CH_WIZARD) {
    walking_legs(g, .13f, .84f, swing * .8f);
    upper_body(g, 1.70f, 1.50f, 1.40f, .27f);
    g.j[J_LHAND] = v3(-.46f, .98f + up, -swing * .7f);
    g.j[J_RHAND] = v3(.52f, 1.12f + g.bob + up * .5f, .26f + swing * .2f);
  } else if (type == CH_KNIGHT) {
    walking_legs(g, .16f, .88f, swing);
    upper_body(g, 1.80f, 1.56f, 1.44f, .38f);
    g.j[J_LHAND] = v3(-.48f, .92f + up, -swing * .9f);
    g.j[J_RHAND] = v3(.50f, .94f + up, .16f + swing * .6f);
  } else {
    walking_legs(g, .17f, .86f, swing);
    upper_body(g, 1.86f, 1.62f, 1.44f, .40f);
    g.j[J_LHAND] = v3(-.52f, .86f + up, -swing * .9f);
    g.j[J_RHAND] = v3(.52f, .86f + up, swing * .9f);
  }
  return g;
}

// From the figure's space to the world's: leans, then turns.
HD V3 figure_to_world(V3 n, const float *F) {
  float cs = cosf(F[F_PYAW]), sn = sinf(F[F_PYAW]), cl = cosf(F[F_ROLL]), sl = sinf(F[F_ROLL]);
  V3 r = v3(cl * n.x - sl * n.y, sl * n.x + cl * n.y, n.z);
  return v3(cs * r.x + sn * r.z, r.y, -sn * r.x + cs * r.z);
}

// Joints of a frame in the picture of W x H pixels: out[NJOINT][3] is x, y, and 1 where it lies in the picture.
HD void pose_frame(float *out, const float *F, int H, int W) {
  Figure g = figure_of(F);
  float cy = cosf(F[F_YAW]), sy = sinf(F[F_YAW]), cp = cosf(F[F_PITCH]), sp = sinf(F[F_PITCH]);
  bool part = F[F_FULLW] > 0.f;
  float fw = part ? F[F_FULLW] : (float)W, fh = part ? F[F_FULLH] : (float)H, x0 = part ? F[F_CROPX] : 0.f,
        y0 = part ? F[F_CROPY] : 0.f;
  for (int i = 0; i < NJOINT; i++) {
    V3 p = figure_to_world(g.j[i], F) + v3(F[F_PX] - F[F_CAMX], F[F_PY] - F[F_CAMY], F[F_PZ] - F[F_CAMZ]);
    float dx = cy * p.x - sy * p.z, dz = sy * p.x + cy * p.z, ly = p.y * cp - dz * sp,
          lz = fmaxf(p.y * sp + dz * cp, 1e-3f);
    float x = (1.f + dx / (lz * LENS)) * .5f * fw - x0, y = (fh - ly / (lz * LENS) * fw) * .5f - y0;
    bool has = F[F_VIEW] < .5f && lz > .1f && (i != J_HORSE || (int)F[F_CHAR] == CH_RIDER);
    bool seen = has && x >= 0.f && x < (float)W && y >= 0.f && y < (float)H;
    out[i * 3] = seen ? x : 0.f;
    out[i * 3 + 1] = seen ? y : 0.f;
    out[i * 3 + 2] = seen ? 1.f : 0.f;
  }
}
