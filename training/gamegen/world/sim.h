// Simulation: keys to motion, environment changes, camera, spawn.
#pragma once
#include "objects.h"

HD V3 P3(const float *p) {
  return v3(p[0], p[1], p[2]);
}

// The tint of each time of day, which stays under any weather and effect.
HD V3 light_grade(const float *S, int biome) {
  const float tint[4][3] = {{1.f, 1.f, 1.f}, {1.13f, .90f, .70f}, {.78f, .90f, 1.18f}, {1.05f, .91f, 1.06f}};
  V3 g = v3(0, 0, 0);
  for (int i = 0; i < 4; i++)
    g = g + v3(tint[i][0], tint[i][1], tint[i][2]) * S[S_TOD0 + i];
  if (biome == BI_DESERT) // sand keeps some warmth in moonlight
    g = g + v3(.22f, .08f, -.18f) * S[S_TOD0 + 2];
  return g;
}

HDN void frame_params(const float *S, float *F) {
  const float TOD[4][16] = {
      // dir(3) sun(3) amb(3) top(3) hor(3) night
      {.45f, .72f, .30f, 1.22f, 1.14f, .95f, .40f, .48f, .60f, .16f, .38f, .80f, .66f, .82f, .95f, 0},
      {.25f, .19f, .90f, 1.50f, .60f, .20f, .36f, .27f, .36f, .24f, .16f, .42f, 1.0f, .44f, .15f, .25f},
      {-.35f, .55f, .60f, .42f, .52f, .80f, .23f, .27f, .43f, .012f, .022f, .075f, .06f, .09f, .20f, 1.f},
      {-.65f, .26f, .70f, 1.08f, .68f, .68f, .42f, .34f, .50f, .40f, .38f, .76f, 1.0f, .66f, .74f, .08f}};
  float L[16];
  for (int j = 0; j < 16; j++) {
    L[j] = 0;
    for (int i = 0; i < 4; i++)
      L[j] += S[S_TOD0 + i] * TOD[i][j];
  }
  float az = S[S_SUNAZ], ca = cosf(az), sa = sinf(az);
  V3 sun = norm(v3(L[0] * ca + L[2] * sa, L[1], -L[0] * sa + L[2] * ca));
  float we[4], ef[4];
  for (int i = 0; i < 4; i++) {
    float w = S[S_WEA0 + i], e = S[S_EFF0 + i];
    we[i] = w * w * (3 - 2 * w);
    ef[i] = e * e * (3 - 2 * e);
  }
  float rain = we[1], snow = we[2], fog = we[3], ov = sat(rain * .92f + snow * .80f + fog * .55f);
  int bi = (int)S[S_BIOME];
  float night = L[15];
  V3 sc = P3(L + 3), amb = P3(L + 6), top = P3(L + 9), hor = P3(L + 12);
  float gl = (hor.x + hor.y + hor.z) / 3.f, gt = (top.x + top.y + top.z) / 3.f;
  V3 g1 = v3(gl * .84f, gl * .88f, gl * .94f),
     g2 = v3(gt * 1.15f + .06f * (1 - night), gt * 1.18f + .07f * (1 - night),
             gt * 1.24f + .08f * (1 - night));
  hor = mix(hor, g1, ov * .70f);
  top = mix(top, g2, ov * .80f);
  sc = sc * (1.f - .55f * ov);
  amb = amb * (1.f + .12f * ov * (1 - night));
  if (bi == BI_VOLCANIC) {
    V3 t = v3(.46f, .20f, .15f);
    hor = mix(hor, t * (.50f + .50f * (1 - night)), .55f);
    top = mix(top, v3(.20f, .12f, .13f) * (.25f + .75f * (1 - night)), .6f);
    amb = mix(amb, v3(.38f, .26f, .24f), .35f * (1 - .5f * night));
  }
  if (bi == BI_ALIEN) {
    hor = mix(hor, v3(.36f, .80f, .72f) * (.2f + .8f * (1 - night)), .45f);
    top = mix(top, v3(.30f, .16f, .56f) * (.2f + .8f * (1 - night)), .6f);
    amb = mix(amb, v3(.42f, .36f, .58f), .35f * (1 - .6f * night));
  }
  if (bi == BI_DESERT)
    hor = mix(hor, v3(.96f, .80f, .60f) * (.12f + .88f * (1 - night)), .25f);
  float ember = ef[1], sand = ef[2], magic = ef[3];
  hor = mix(hor, v3(.66f, .26f, .12f) * (.4f + .6f * (1 - night)), ember * .45f);
  top = mix(top, v3(.22f, .12f, .12f) * (.3f + .7f * (1 - night)), ember * .5f);
  hor = mix(hor, v3(.82f, .60f, .34f) * (.16f + .84f * (1 - night)), sand * (.75f - .35f * fog));
  top = mix(top, v3(.72f, .54f, .36f) * (.10f + .9f * (1 - night)), sand * .6f);
  hor = mix(hor, v3(.48f, .36f, .86f) * (.25f + .75f * (1 - night)), magic * .35f);
  top = mix(top, v3(.22f, .16f, .62f) * (.2f + .8f * (1 - night)), magic * .45f);
  sc = sc * (1.f - .25f * (ember + magic));
  hor = hor + v3(.05f, .055f, .065f) * (fog * night);
  V3 fogc = mix(hor, top, .18f);
  F[F_TIME] = S[S_TIME];
  F[F_SEED] = S[S_SEED];
  F[F_BIOME] = S[S_BIOME];
  F[F_SUNX] = sun.x;
  F[F_SUNY] = sun.y;
  F[F_SUNZ] = sun.z;
  F[F_SUNC] = sc.x;
  F[F_SUNC + 1] = sc.y;
  F[F_SUNC + 2] = sc.z;
  F[F_AMB] = amb.x;
  F[F_AMB + 1] = amb.y;
  F[F_AMB + 2] = amb.z;
  F[F_TOP] = top.x;
  F[F_TOP + 1] = top.y;
  F[F_TOP + 2] = top.z;
  F[F_HOR] = hor.x;
  F[F_HOR + 1] = hor.y;
  F[F_HOR + 2] = hor.z;
  F[F_FOGC] = fogc.x;
  F[F_FOGC + 1] = fogc.y;
  F[F_FOGC + 2] = fogc.z;
  F[F_NIGHT] = night;
  F[F_FOG] = .0052f + .0042f * rain + .0085f * snow + .030f * fog + .013f * sand + .004f * ember;
  F[F_CLOUD] = sat(.22f + .70f * ov);
  F[F_RAIN] = rain;
  F[F_SNOW] = snow;
  F[F_EMBER] = ember;
  F[F_SAND] = sand;
  F[F_MAGIC] = magic;
  F[F_MIST] = fog;
  V3 grade = light_grade(S, bi);
  F[F_GRADE] = grade.x;
  F[F_GRADE + 1] = grade.y;
  F[F_GRADE + 2] = grade.z;
  F[F_CHAR] = S[S_CHAR];
  F[F_COL] = S[S_COL];
  F[F_VIEW] = S[S_VIEW];
  F[F_PX] = S[S_X];
  F[F_PY] = S[S_Y];
  F[F_PZ] = S[S_Z];
  F[F_PYAW] = S[S_YAW] + .12f * S[S_YV] * 8.f;
  F[F_PHASE] = S[S_PHASE];
  F[F_SPEED] = S[S_VEL];
  F[F_AIR] = S[S_AIR];
  F[F_ROLL] = clampf(-S[S_YV] * 2.2f, -.2f, .2f) * sat(fabsf(S[S_VEL]) * .3f);
  float yaw = S[S_YAW], fx = sinf(yaw), fz = cosf(yaw);
  bool rider = (int)S[S_CHAR] == 2;
  F[F_YAW] = yaw;
  Biome b = biome_of(bi);
  uint32_t seed = (uint32_t)S[S_SEED];
  if (S[S_VIEW] > .5f) {
    float bob = fabsf(cosf(S[S_PHASE])) * .05f * sat(fabsf(S[S_VEL]) / 4.f);
    F[F_CAMX] = S[S_X];
    F[F_CAMY] = S[S_Y] + (rider ? 2.45f : 1.75f) + bob;
    F[F_CAMZ] = S[S_Z];
    F[F_PITCH] = -.11f;
  } else {
    float d = rider ? 5.4f : 4.5f, hh = rider ? 2.95f : 2.35f;
    F[F_CAMX] = S[S_X] - fx * d;
    F[F_CAMZ] = S[S_Z] - fz * d;
    float g = fmaxf(height(F[F_CAMX], F[F_CAMZ], b, seed, 4), b.water) + .9f;
    F[F_CAMY] = fmaxf(S[S_CAMY] + hh, g);
    F[F_PITCH] = clampf(atan2f(S[S_CAMY] + 1.35f - F[F_CAMY], d + 3.f), -.5f, .2f);
  }
}

HDN void sim_step(float *S, const float *A) {
  const float DT = 1.f / 24.f;
  int bi = (int)S[S_BIOME];
  Biome b = biome_of(bi);
  uint32_t seed = (uint32_t)S[S_SEED];
  bool rider = (int)S[S_CHAR] == 2;
  float turn = (A[A_D] - A[A_A]) * 1.45f * DT, run = A[A_SHIFT] > .5f ? 2.2f : 1.f,
        want = (A[A_W] * 4.2f * run - A[A_S] * 3.8f) * (rider ? 1.5f : 1.f);
  S[S_YV] += (turn - S[S_YV]) * .45f;
  S[S_YAW] += S[S_YV];
  S[S_VEL] += (want - S[S_VEL]) * .30f;
  float fx = sinf(S[S_YAW]), fz = cosf(S[S_YAW]);
  float nx = S[S_X] + fx * S[S_VEL] * DT, nz = S[S_Z] + fz * S[S_VEL] * DT;
  int cx = (int)floorf(nx / CELL), cz = (int)floorf(nz / CELL);
  for (int i = -1; i <= 1; i++)
    for (int j = -1; j <= 1; j++) {
      Obj o = object_at(cx + i, cz + j, bi, b, seed);
      if (o.type == OB_NONE)
        continue;
      float r = obj_core(o);
      if (r <= 0.f)
        continue;
      r += .45f;
      float dx = nx - o.x, dz = nz - o.z, d2 = dx * dx + dz * dz;
      if (d2 < r * r) {
        float d = sqrtf(d2) + 1e-4f;
        nx = o.x + dx / d * r;
        nz = o.z + dz / d * r;
      }
    }
  S[S_X] = nx;
  S[S_Z] = nz;
  float g = fmaxf(height(nx, nz, b, seed, 4), b.water - .35f);
  if (S[S_AIR] < .5f && A[A_SPACE] > .5f) {
    S[S_AIR] = 1.f;
    S[S_VY] = 6.2f;
  }
  if (S[S_AIR] > .5f) {
    S[S_VY] -= 15.f * DT;
    S[S_Y] += S[S_VY] * DT;
    if (S[S_Y] <= g) {
      S[S_Y] = g;
      S[S_AIR] = 0.f;
      S[S_VY] = 0.f;
    }
  } else
    S[S_Y] = g;
  S[S_CAMY] += (mixf(g, S[S_Y], .35f) - S[S_CAMY]) * .22f;
  S[S_PHASE] += fabsf(S[S_VEL]) * DT * (rider ? 1.55f : 2.3f) + 0.f;
  S[S_TIME] += DT;
  for (int k = 0; k < 3; k++) {
    int base = k == 0 ? S_TOD0 : k == 1 ? S_WEA0 : S_EFF0;
    int tgt = (int)S[S_TT + k];
    float rate = 1.f / CHANGE_LENGTH;
    float sum = 0;
    for (int i = 0; i < 4; i++) {
      float d = (i == tgt ? 1.f : 0.f) - S[base + i];
      S[base + i] += clampf(d, -rate, rate);
      sum += S[base + i];
    }
    for (int i = 0; i < 4; i++)
      S[base + i] /= fmaxf(sum, 1e-3f);
  }
}

// cond: per clip [T][3] targets (tod, weather, effect) ; -1 keeps
HD void sim_clip(float *S, const float *acts, const float *cond, float *fp, int T) {
  for (int t = 0; t < T; t++) {
    const float *c = cond + t * 3;
    for (int k = 0; k < 3; k++)
      if (c[k] >= 0.f)
        S[S_TT + k] = c[k];
    sim_step(S, acts + t * NACT);
    if (fp)
      frame_params(S, fp + t * NFP);
  }
}

HDN void spawn(float *S) {
  int bi = (int)S[S_BIOME];
  Biome b = biome_of(bi);
  uint32_t seed = (uint32_t)S[S_SEED];
  uint32_t h = hash3i((int)S[S_SEED], 99, 12345u);
  float bx = 0, bz = 0, best = -1e9f;
  for (int i = 0; i < 24; i++) {
    h = nexth(h);
    float x = (u01(h) - .5f) * 600.f;
    h = nexth(h);
    float z = (u01(h) - .5f) * 600.f;
    float y = height(x, z, b, seed, 4), e = 1.5f;
    float sl = fabsf(height(x + e, z, b, seed, 4) - y) + fabsf(height(x, z + e, b, seed, 4) - y);
    int cx = (int)floorf(x / CELL), cz = (int)floorf(z / CELL);
    Obj o = object_at(cx, cz, bi, b, seed);
    float pen = 0;
    if (o.type != OB_NONE) {
      float dx = x - o.x, dz = z - o.z;
      if (dx * dx + dz * dz < 9.f + o.rad * o.rad)
        pen = 5.f;
    }
    if (y < b.water + .6f)
      pen += 20.f;
    float sc = -sl * 3.f - pen + .8f * pathmask(x, z, seed);
    if (sc > best) {
      best = sc;
      bx = x;
      bz = z;
    }
  }
  S[S_X] = bx;
  S[S_Z] = bz;
  S[S_Y] = height(bx, bz, b, seed, 4);
  S[S_CAMY] = S[S_Y];
}
