// Sky: gradient, sun, stars, clouds, aurora, distant mountains.
#pragma once
#include "layout.h"

// ------------------------------------------------------------------ sky
HDN V3 sky(V3 rd, const float *F, uint32_t seed, bool full) {
  V3 top = v3(F[F_TOP], F[F_TOP + 1], F[F_TOP + 2]), hor = v3(F[F_HOR], F[F_HOR + 1], F[F_HOR + 2]),
     sun = v3(F[F_SUNX], F[F_SUNY], F[F_SUNZ]), sc = v3(F[F_SUNC], F[F_SUNC + 1], F[F_SUNC + 2]);
  float night = F[F_NIGHT], cl = F[F_CLOUD];
  float y = fmaxf(rd.y, 0.f);
  float k = 1.f - expf(-y * 4.2f);
  V3 c = mix(hor, top, k);
  float sd = fmaxf(dot(rd, sun), 0.f);
  c = c + sc * (powf(sd, 6.f) * .16f * (1.f - .6f * cl)) + sc * (powf(sd, 48.f) * .30f * (1.f - .7f * cl));
  if (!full)
    return c;
  float disc = sstep(.9972f - .0012f * night, .9984f, sd) * (1.f - cl * .92f);
  V3 dc = mix(sc * 1.6f, v3(.93f, .95f, 1.f), night);
  if (night > .02f) { // stars + moon shade
    float u = atan2f(rd.x, rd.z) * 14.f, v = asinf(clampf(rd.y, -1.f, 1.f)) * 16.f;
    int iu = (int)floorf(u), iv = (int)floorf(v);
    uint32_t h = hash3i(iu, iv, seed ^ 909u);
    float du = u - iu - .2f - .6f * u01(h), dv = v - iv - .2f - .6f * u01(nexth(h));
    float r2 = du * du + dv * dv;
    if (u01(nexth(h ^ 3u)) < .55f)
      c = c + v3(.9f, .92f, 1.f) * (night * (1.f - cl) * sstep(.012f, .002f, r2) * sstep(.02f, .25f, rd.y) *
                                    (.5f + .5f * u01(nexth(h ^ 7u))));
  }
  c = mix(c, dc, disc);
  if (rd.y > .012f) { // clouds
    float s = 1.f / (rd.y + .10f), px = rd.x * s * 1.5f + F[F_TIME] * .022f,
          pz = rd.z * s * 1.5f + F[F_TIME] * .012f;
    float n = .56f * vnoise(px, pz, seed ^ 21u) + .28f * vnoise(px * 2.1f + 5.f, pz * 2.1f, seed ^ 22u) +
              .16f * vnoise(px * 4.4f, pz * 4.4f + 9.f, seed ^ 23u);
    float lo = mixf(.60f, .22f, cl), m = sstep(lo, lo + .26f, n) * sstep(.012f, .16f, rd.y);
    V3 lit = mix(hor, sc, .55f) * .62f + v3(.34f, .34f, .36f) * (1.f - night * .9f);
    V3 dk = mix(hor, top, .45f) * .82f;
    V3 cc = mix(lit, dk, sat((n - lo) * 1.6f + cl * .45f));
    c = mix(c, cc, m * .88f);
  }
  if (F[F_MAGIC] > .01f && rd.y > .05f) {
    float w = vnoise(atan2f(rd.x, rd.z) * 3.f + F[F_TIME] * .12f, rd.y * 1.2f, seed ^ 55u);
    float band = sstep(.12f, .0f, fabsf(rd.y - .22f - .30f * w)) +
                 .5f * sstep(.2f, 0.f, fabsf(rd.y - .42f - .25f * w));
    c = c + mix(v3(.15f, .9f, .65f), v3(.6f, .25f, .95f), w) * (band * F[F_MAGIC] * .42f);
  }
  // distant mountain silhouettes
  if (rd.y < .16f) {
    float az = atan2f(rd.x, rd.z);
    V3 ground = v3(F[F_FOGC], F[F_FOGC + 1], F[F_FOGC + 2]);
    for (int i = 0; i < 2; i++) {
      float f = i == 0 ? 2.3f : 4.1f;
      float e = (i == 0 ? .055f : .03f) +
                (i == 0 ? .10f : .055f) * (vnoise(az * f + 40.f, i * 7.f, seed ^ 61u) - .3f) +
                .03f * (vnoise(az * f * 3.7f, i * 3.f, seed ^ 62u) - .5f) +
                .01f * (vnoise(az * f * 11.f, 0.f, seed ^ 63u) - .5f);
      V3 mc = mix(mix(ground * .58f, top * .75f, .42f), hor, i == 0 ? .55f : .32f);
      c = mix(c, mc, sstep(e + .003f, e - .003f, rd.y));
    }
  }
  return c;
}
