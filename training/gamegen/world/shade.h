// One ray and one pixel.
#pragma once
#include "overlay.h"
#include "surface.h"

// Color of a ray; ld is its direction in camera space, (sx, sy) its place in the picture.
HDN V3 shade_ray(V3 ro, V3 rd, V3 ld, const float *F, float sx, float sy) {
  Scene sc = scene_of(F);
  Hit h;
  h.t = 190.f;
  h.n = v3(0, 1, 0);
  h.alb = v3(0, 0, 0);
  h.emi = v3(0, 0, 0);
  h.spec = 0;
  bool held = F[F_VIEW] > .5f && hit_fp(h, ld, F);
  bool own = held;
  int kind = held ? (int)HIT_OBJECT : trace(h, ro, rd, sc, own);
  V3 p = ro + rd * h.t, col;
  if (kind == HIT_SKY) {
    col = sky_fog(sky(rd, F, sc.seed, true), rd, sc);
  } else {
    if (kind == HIT_TERRAIN)
      terrain_surface(h, p, sc);
    else if (kind == HIT_WATER)
      col = water_surface(h, p, rd, sc);
    if (kind != HIT_WATER || sc.land.lava > .5f)
      col = lit_surface(h, p, rd, kind, own, held, sc);
    if (!held)
      col = hit_fog(col, h, rd, sc);
  }
  if (!own)
    col = col * v3(F[F_GRADE], F[F_GRADE + 1], F[F_GRADE + 2]);
  return particles(col, sx, sy, own, sc);
}

HD float tone(float c) {
  c = fmaxf(c, 0.f);
  c = c * (1.f + c * .22f) / (1.f + c * .66f) * 1.30f;
  return powf(sat(c), .84f);
}

HDN void render_pixel(uint8_t *out, const float *F, int x, int y, int W, int H, int spp) {
  float cy = cosf(F[F_YAW]), sy = sinf(F[F_YAW]), cp = cosf(F[F_PITCH]), sp = sinf(F[F_PITCH]);
  V3 ro = v3(F[F_CAMX], F[F_CAMY], F[F_CAMZ]);
  V3 acc = v3(0, 0, 0);
  float fw = F[F_FULLW] > 0.f ? F[F_FULLW] : (float)W, fh = F[F_FULLW] > 0.f ? F[F_FULLH] : (float)H,
        x0 = F[F_FULLW] > 0.f ? F[F_CROPX] : 0.f, y0 = F[F_FULLW] > 0.f ? F[F_CROPY] : 0.f;
  float asp = fh / fw;
  int n = spp <= 1 ? 1 : spp;
  for (int i = 0; i < n; i++) {
    float jx = .5f, jy = .5f;
    if (n == 2) {
      jx = i ? .75f : .25f;
      jy = i ? .75f : .25f;
    } else if (n == 4) {
      const float JX[4] = {.375f, .875f, .125f, .625f}, JY[4] = {.125f, .375f, .625f, .875f};
      jx = JX[i];
      jy = JY[i];
    } else if (n > 1) {
      jx = fractf_(.5f + i * .754877f);
      jy = fractf_(.5f + i * .569840f);
    }
    float u = (2.f * (x + x0 + jx) / fw - 1.f), v = (1.f - 2.f * (y + y0 + jy) / fh) * asp;
    V3 l = norm(v3(u * LENS, v * LENS, 1.f));
    V3 d = v3(l.x, l.y * cp + l.z * sp, -l.y * sp + l.z * cp);
    V3 rd = v3(cy * d.x + sy * d.z, d.y, -sy * d.x + cy * d.z);
    V3 c = shade_ray(ro, rd, l, F, u, v);
    acc = acc + v3(tone(c.x), tone(c.y), tone(c.z));
  }
  float k = 255.f / n;
  out[0] = (uint8_t)(acc.x * k + .5f);
  out[1] = (uint8_t)(acc.y * k + .5f);
  out[2] = (uint8_t)(acc.z * k + .5f);
}
