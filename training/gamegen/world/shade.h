// One ray: march over the terrain, walk over the grid, shade, and overlay particles.
#pragma once
#include "character.h"
#include "sky.h"

HDN float march(V3 ro, V3 rd, const Biome &b, uint32_t seed, float tmax) {
  float maxh = b.amp * 1.05f + 2.f;
  float t = .15f;
  if (ro.y > maxh) {
    if (rd.y >= 0)
      return -1.f;
    t = (maxh - ro.y) / rd.y;
  }
  float tp = t, lastd = 0.f;
  for (int i = 0; i < 72; i++) {
    float y = ro.y + rd.y * t;
    if (t > tmax || (y > maxh && rd.y > 0))
      return -1.f;
    float d = y - height(ro.x + rd.x * t, ro.z + rd.z * t, b, seed, t < 40.f ? 5 : 3);
    if (d < .0015f * t) {
      float a = tp, c = t;
      for (int k = 0; k < 5; k++) {
        float m = .5f * (a + c);
        float dm = ro.y + rd.y * m - height(ro.x + rd.x * m, ro.z + rd.z * m, b, seed, t < 40.f ? 5 : 3);
        if (dm < .0008f * m)
          c = m;
        else
          a = m;
      }
      return c;
    }
    tp = t;
    lastd = d;
    t += fmaxf(d * .62f, .05f + .011f * t);
  }
  (void)lastd;
  return t < tmax ? t : -1.f;
}

HDN V3 shade_ray(V3 ro, V3 rd, V3 ld, const float *F, float sx, float sy) {
  uint32_t seed = (uint32_t)F[F_SEED];
  int bi = (int)F[F_BIOME];
  Biome b = biome_of(bi);
  const float TMAX = 190.f;
  float night = F[F_NIGHT];
  V3 sun = v3(F[F_SUNX], F[F_SUNY], F[F_SUNZ]), sc = v3(F[F_SUNC], F[F_SUNC + 1], F[F_SUNC + 2]),
     amb = v3(F[F_AMB], F[F_AMB + 1], F[F_AMB + 2]), fogc = v3(F[F_FOGC], F[F_FOGC + 1], F[F_FOGC + 2]),
     ppos = v3(F[F_PX], F[F_PY], F[F_PZ]);
  Hit h;
  h.t = TMAX;
  h.n = v3(0, 1, 0);
  h.alb = v3(0, 0, 0);
  h.emi = v3(0, 0, 0);
  h.spec = 0;
  int kind = 0; // 0 sky 1 terrain 2 object 3 water
  V3 col;
  float wet = F[F_RAIN];
  bool fp = F[F_VIEW] > .5f && hit_fp(h, ld, F);
  bool own = fp;
  if (!fp) {
    h.t = TMAX;
    float tw = 1e9f;
    if (b.water > -50.f && rd.y < -1e-4f)
      tw = (b.water - ro.y) / rd.y;
    if (tw < .05f)
      tw = 1e9f;
    float tt = march(ro, rd, b, seed, fminf(TMAX, tw < 1e8f ? tw + .01f : TMAX));
    if (tt > 0 && tt <= tw) {
      h.t = tt;
      kind = 1;
    } else if (tw < TMAX) {
      h.t = tw;
      kind = 3;
    }
    float tlim = h.t;
    float t0 = h.t;
    if (F[F_VIEW] < .5f) {
      hit_char(h, ro, rd, F);
      if (h.t < t0) {
        kind = 2;
        own = true;
      }
    }
    // grid walk over the objects
    {
      int cx = (int)floorf(ro.x / CELL), cz = (int)floorf(ro.z / CELL);
      float ix = fabsf(rd.x) < 1e-6f ? 1e6f : 1.f / rd.x, iz = fabsf(rd.z) < 1e-6f ? 1e6f : 1.f / rd.z;
      int sxn = rd.x > 0 ? 1 : -1, szn = rd.z > 0 ? 1 : -1;
      float tx = ((cx + (rd.x > 0)) * CELL - ro.x) * ix, tz = ((cz + (rd.z > 0)) * CELL - ro.z) * iz,
            dx = fabsf(CELL * ix), dz = fabsf(CELL * iz);
      float t = 0.f;
      float lim = fminf(fminf(tlim, h.t) + 1.f, 150.f);
      float ylim = b.amp + 14.f;
      for (int i = 0; i < 30 && t < lim; i++) {
        float yy = ro.y + rd.y * t;
        if (rd.y > 0 && yy > ylim)
          break;
        Obj o = object_at(cx, cz, bi, b, seed);
        if (o.type != OB_NONE) {
          float ta = t, tb = fminf(tx, tz);
          float ya = ro.y + rd.y * ta, yb = ro.y + rd.y * tb;
          if (fminf(ya, yb) < o.y + o.top + .5f && fmaxf(ya, yb) > o.y - 1.f) {
            float bt = h.t;
            hit_object(h, ro, rd, o, bi, night);
            if (h.t < bt) {
              kind = 2;
              own = false;
              lim = fminf(lim, h.t);
            }
          }
        }
        if (tx < tz) {
          t = tx;
          tx += dx;
          cx += sxn;
        } else {
          t = tz;
          tz += dz;
          cz += szn;
        }
      }
    }
  } else
    kind = 2;
  V3 p = ro + rd * h.t;
  float shadow = 1.f, ao = 1.f;
  if (kind == 0) {
    col = sky(rd, F, seed, true);
  } else {
    if (kind == 1) {
      float e = .06f + .004f * h.t;
      int oc = h.t < 45.f ? 5 : 4;
      float hx = height(p.x + e, p.z, b, seed, oc) - height(p.x - e, p.z, b, seed, oc),
            hz = height(p.x, p.z + e, b, seed, oc) - height(p.x, p.z - e, b, seed, oc);
      h.n = norm(v3(-hx, 2.f * e, -hz));
      float slope = h.n.y, n1 = vnoise(p.x * .11f, p.z * .11f, seed ^ 11u),
            n2 = vnoise(p.x * .55f, p.z * .55f, seed ^ 12u), n3 = vnoise(p.x * 2.3f, p.z * 2.3f, seed ^ 13u),
            fd = expf(-h.t * .03f);
      float rel = (p.y - fmaxf(b.water, -6.f)) / (b.amp * .8f);
      V3 a = mix(b.mid, b.hi, sat(n1 * 1.5f - .3f));
      a = mix(b.lo, a, sstep(.05f, .16f, rel + .06f * (n2 - .5f)));
      if (bi == BI_DESERT) {
        float rip = .5f + .5f * sinf(p.x * 2.2f + p.z * .9f + 3.f * n1 + 1.5f * n2);
        a = a * (1.f - .10f * rip * fd);
      }
      a = mix(a, b.rock * (.8f + .4f * n2), sstep(.80f, .66f, slope + .06f * (n2 - .5f)));
      a = mix(a, b.path * (.9f + .2f * n2), pathmask(p.x, p.z, seed) * sstep(.6f, .8f, slope));
      a = a * (.84f + .22f * n2 + .20f * (n3 - .5f) * fd);
      if (bi == BI_MEADOW && n1 > .55f && slope > .85f) {
        float n5 = vnoise(p.x * 1.6f + 7.f, p.z * 1.6f, seed ^ 14u);
        a = mix(a, n1 > .7f ? v3(.9f, .8f, .25f) : v3(.85f, .55f, .75f),
                sstep(.80f, .88f, n5) * .75f * sat(fd * 2.f));
      }
      if (bi == BI_VOLCANIC) {
        float cr = fabsf(vnoise(p.x * .16f, p.z * .16f, seed ^ 15u) - .5f);
        float g = sstep(.035f, .008f, cr) * sstep(.25f, .0f, rel - .1f);
        h.emi = v3(1.f, .32f, .06f) * g;
      }
      if (bi == BI_ALIEN) {
        float g = sstep(.72f, .86f, vnoise(p.x * .9f, p.z * .9f, seed ^ 16u)) * fd;
        h.emi = v3(.10f, .55f, .60f) * (g * (.12f + .45f * night));
      }
      float sn = F[F_SNOW];
      a = mix(a, v3(.9f, .93f, .97f), sn * .55f * sstep(.7f, .9f, slope) * (.5f + .5f * n2));
      h.alb = a * (1.f - .28f * wet);
      h.spec = .25f * wet;
      float wa = sat((p.y - b.water) * 2.2f);
      if (b.water > -50.f && b.lava < .5f)
        h.alb = h.alb * (.6f + .4f * wa);
    } else if (kind == 3) {
      float dpt = clampf(b.water - height(p.x, p.z, b, seed, 3), 0.f, 6.f), tm = F[F_TIME];
      V3 n = v3(.05f * sinf(p.x * .9f + tm * 1.6f) + .035f * sinf(p.z * 1.7f - tm * 2.1f + p.x * .4f), 1.f,
                .05f * sinf(p.z * 1.1f + tm * 1.3f) + .03f * sinf(p.x * 2.1f + tm * 1.9f));
      n.x *= expf(-h.t * .012f);
      n.z *= expf(-h.t * .012f);
      n = norm(n);
      if (b.lava > .5f) {
        float l = .6f * vnoise(p.x * .35f + tm * .15f, p.z * .35f, seed ^ 31u) +
                  .4f * vnoise(p.x * 1.1f - tm * .2f, p.z * 1.1f, seed ^ 32u);
        h.alb = v3(.1f, .03f, .02f);
        h.emi = mix(v3(.30f, .03f, .01f), v3(1.25f, .55f, .10f), sstep(.32f, .72f, l));
        h.n = v3(0, 1, 0);
      } else {
        V3 r = rd - n * (2.f * dot(rd, n));
        r.y = fabsf(r.y) + .02f;
        r = norm(r);
        V3 sk = sky(r, F, seed, false);
        float fr = .06f + .94f * powf(1.f - sat(-dot(rd, n)), 5.f);
        V3 base = mix(mix(b.lo, b.wcol, .55f), b.wcol, sat(dpt * .6f)) * (amb + sc * .45f);
        float sp = powf(sat(dot(r, sun)), 160.f);
        float foam = sstep(.35f, .0f, dpt + .12f * sinf(p.x * 1.3f + p.z + tm * 2.f));
        col = mix(base, sk, bi == BI_SNOW ? fr * .5f : fr) + sc * (sp * 1.2f);
        col = mix(col, (amb + sc * .7f), foam * .55f);
        if (bi == BI_ALIEN)
          col = col + v3(.02f, .25f, .25f) * (.3f + .5f * night);
      }
    }
    if (kind != 3 || b.lava > .5f) {
      float nl = dot(h.n, sun);
      if (!fp && kind != 3 && nl > 0.f) { // terrain shadow, coarse
        float st = 1.0f;
        V3 q = p + h.n * .15f;
        for (int i = 0; i < 9; i++) {
          float yy = q.y + sun.y * st;
          float d = yy - height(q.x + sun.x * st, q.z + sun.z * st, b, seed, 3);
          shadow = fminf(shadow, sat(.5f + 5.f * d / st));
          st *= 1.55f;
          if (yy > b.amp + 2.f)
            break;
        }
      }
      if (kind == 1) { // contact shadows of objects and the character
        int cx = (int)floorf(p.x / CELL), cz = (int)floorf(p.z / CELL);
        V3 sh = v3(sun.x, 0, sun.z) * (1.f / fmaxf(sun.y, .25f));
        for (int i = 0; i < 2; i++) {
          float ox = p.x + sh.x * (i ? 3.2f : 0.f), oz = p.z + sh.z * (i ? 3.2f : 0.f);
          int ax = i ? (int)floorf(ox / CELL) : cx, az = i ? (int)floorf(oz / CELL) : cz;
          if (i && ax == cx && az == cz)
            break;
          if (h.t > 90.f)
            break;
          Obj o = object_at(ax, az, bi, b, seed);
          if (o.type != OB_NONE) {
            float dx = p.x - o.x, dz = p.z - o.z;
            float L = o.top * .62f;
            V3 s2 = sh * L;
            float sl2 = sqrtf(s2.x * s2.x + s2.z * s2.z);
            s2 = s2 * fminf(1.f, 5.f / fmaxf(sl2, 1e-3f));
            float ss = s2.x * s2.x + s2.z * s2.z + 1e-4f;
            float k = clampf((-(dx * s2.x + dz * s2.z)) / ss, 0.f, 1.f);
            float qx = dx + s2.x * k, qz = dz + s2.z * k;
            float dd = sqrtf(qx * qx + qz * qz);
            float rr = o.rad * .78f;
            shadow *= 1.f - .72f * sstep(rr * 1.12f, rr * .62f, dd);
            ao *= 1.f - .4f * sstep(o.rad, o.rad * .3f, sqrtf(dx * dx + dz * dz));
          }
        }
        if (F[F_VIEW] < .5f) {
          float dx = p.x - ppos.x, dz = p.z - ppos.z, hgt = fmaxf(ppos.y - p.y, 0.f);
          V3 s2 = sh * (1.5f);
          float ss = s2.x * s2.x + s2.z * s2.z + 1e-4f;
          float ddx = dx + sh.x * hgt, ddz = dz + sh.z * hgt;
          float k = clampf(-(ddx * s2.x + ddz * s2.z) / ss, 0.f, 1.f);
          float qx = ddx + s2.x * k, qz = ddz + s2.z * k;
          float rr = (int)F[F_CHAR] == 2 ? .75f : .45f;
          shadow *= 1.f - .75f * sstep(rr * 1.3f, rr * .6f, sqrtf(qx * qx + qz * qz));
          ao *= 1.f - .45f * sstep(.9f, .2f, sqrtf(dx * dx + dz * dz) + hgt * .4f);
        }
      }
      float dif = sat(nl * .9f + .1f) * shadow;
      float hemi = .62f + .38f * h.n.y;
      V3 hv = norm(sun - rd);
      float sp = h.spec > 0 ? h.spec * powf(sat(dot(h.n, hv)), 28.f) * shadow : 0.f;
      float rim = own ? .28f * powf(1.f - sat(-dot(h.n, rd)), 3.f) : 0.f;
      col = h.alb * (sc * dif + amb * (hemi * ao)) + sc * sp + h.emi + amb * rim;
      if (own)
        col = col + h.alb * (.10f * night);
      // light of effects and lava on the ground
      if (F[F_EMBER] > .01f) {
        float fl = .75f + .25f * vnoise(F[F_TIME] * 4.f, 0.f, 9u);
        float dx = p.x - ppos.x, dz = p.z - ppos.z;
        col = col + h.alb * v3(1.f, .42f, .12f) *
                        (F[F_EMBER] * fl * (.14f + .7f / (1.f + .06f * (dx * dx + dz * dz))));
      }
      if (F[F_MAGIC] > .01f) {
        float dx = p.x - ppos.x, dz = p.z - ppos.z, r = sqrtf(dx * dx + dz * dz);
        col = col + h.alb * v3(.35f, .45f, 1.f) * (F[F_MAGIC] * (.08f + .55f / (1.f + .10f * r * r)));
        if (kind == 1) {
          float ring = sstep(.14f, .03f, fabsf(r - 1.7f - .25f * sinf(F[F_TIME] * 2.f)));
          col = col + v3(.30f, .75f, 1.f) * (ring * F[F_MAGIC] * .85f);
        }
      }
      if (kind == 1 && F[F_EMBER] > .01f) { // burning patches
        float n = vnoise(p.x * .33f, p.z * .33f, seed ^ 91u),
              fl = vnoise(p.x * 1.4f, p.z * 1.4f - F[F_TIME] * 2.f, seed ^ 92u);
        col = col + v3(1.1f, .45f, .08f) * (sstep(.70f, .80f, n) * (.4f + .8f * fl) * F[F_EMBER]);
      }
    }
    // fog
    if (!fp) {
      float f = F[F_FOG];
      float a = 1.f - expf(-powf(h.t * f, 1.35f));
      float edge = sstep(140.f, 188.f, h.t);
      V3 fc = fogc;
      float sd = fmaxf(dot(rd, sun), 0.f);
      fc = fc + sc * (powf(sd, 8.f) * .14f * (1.f - night));
      V3 sk = mix(fc, v3(F[F_HOR], F[F_HOR + 1], F[F_HOR + 2]), .25f);
      a = fmaxf(a, edge);
      col = mix(col, sk, a);
    }
  }
  if (kind == 0) {
    float a = sat(F[F_FOG] * 55.f - .22f) * sstep(.75f, .0f, rd.y);
    col = mix(col, fogc, sat(a));
    if (F[F_SAND] > .01f)
      col = mix(col, fogc, F[F_SAND] * .85f * sstep(.9f, .0f, rd.y));
  }
  // particles in the view, layered and moving (coherent from frame to frame)
  float yaw = F[F_YAW], tm = F[F_TIME];
  if (F[F_RAIN] > .01f) {
    for (int l = 0; l < 2; l++) {
      float sc2 = 16.f + 9.f * l;
      float u = (sx + yaw * .62f + .10f * sy) * sc2, v = sy * sc2 * .22f + tm * (3.3f + .5f * l);
      int iu = (int)floorf(u);
      float ofs = u01(hash3i(iu, l, seed ^ 71u));
      v += ofs * 7.f;
      int iv = (int)floorf(v);
      float k = u01(hash3i(iu, iv, seed ^ 72u));
      float fu = u - iu, fv = v - iv;
      float m = sstep(.14f, .04f, fabsf(fu - .5f)) * sstep(.0f, .3f, fv) * sstep(.9f, .5f, fv);
      if (k < .42f)
        col = mix(col, amb * 1.15f + v3(.22f, .24f, .27f) * (1.f - .6f * night), m * .34f * F[F_RAIN]);
    }
  }
  if (F[F_SNOW] > .01f) {
    for (int l = 0; l < 2; l++) {
      float sc2 = 5.f + 3.6f * l;
      float u = (sx + yaw * .62f) * sc2 + .3f * sinf(tm * .8f + l), v = sy * sc2 + tm * (1.5f + .35f * l);
      int iu = (int)floorf(u), iv = (int)floorf(v);
      uint32_t hh = hash3i(iu, iv, seed ^ (81u + l));
      float du = u - iu - .25f - .5f * u01(hh), dv = v - iv - .25f - .5f * u01(nexth(hh));
      float r = .055f + .05f * u01(nexth(hh ^ 5u));
      float m = sstep(r * 1.25f, r * .5f, sqrtf(du * du + dv * dv));
      if (u01(nexth(hh ^ 9u)) < .62f)
        col = mix(col, amb * .7f + v3(.62f, .64f, .68f) * (1.f - .5f * night), m * .85f * F[F_SNOW]);
    }
  }
  if (F[F_EMBER] > .01f) {
    for (int l = 0; l < 2; l++) {
      float sc2 = 5.f + 4.f * l;
      float u = (sx + yaw * .62f) * sc2 + .35f * sinf(tm * 1.3f + sy * 3.f + l),
            v = sy * sc2 - tm * (1.2f + .5f * l);
      int iu = (int)floorf(u), iv = (int)floorf(v);
      uint32_t hh = hash3i(iu, iv, seed ^ (101u + l));
      float du = u - iu - .25f - .5f * u01(hh), dv = v - iv - .25f - .5f * u01(nexth(hh));
      float r2 = du * du + dv * dv;
      if (u01(nexth(hh ^ 9u)) < .55f)
        col = col +
              v3(1.3f, .50f, .10f) * (F[F_EMBER] * (sstep(.0065f, .0012f, r2) + .16f * sstep(.06f, .0f, r2)));
    }
  }
  if (F[F_MAGIC] > .01f) {
    for (int l = 0; l < 2; l++) {
      float sc2 = 4.f + 3.f * l;
      float u = (sx + yaw * .62f) * sc2 + .3f * sinf(tm * .9f + sy * 2.f),
            v = sy * sc2 - tm * (.45f + .2f * l);
      int iu = (int)floorf(u), iv = (int)floorf(v);
      uint32_t hh = hash3i(iu, iv, seed ^ (111u + l));
      float du = u - iu - .25f - .5f * u01(hh), dv = v - iv - .25f - .5f * u01(nexth(hh));
      float r2 = du * du + dv * dv;
      float tw = .6f + .4f * sinf(tm * 5.f + 6.28f * u01(nexth(hh ^ 2u)));
      V3 c2 = mix(v3(.35f, .75f, 1.2f), v3(.85f, .40f, 1.2f), u01(nexth(hh ^ 4u)));
      if (u01(nexth(hh ^ 9u)) < .42f)
        col = col + c2 * (F[F_MAGIC] * tw * (sstep(.007f, .001f, r2) + .22f * sstep(.07f, .0f, r2)));
    }
  }
  if (F[F_SAND] > .01f) {
    float n = .6f * vnoise(sx * 2.2f - tm * 3.1f + yaw * 1.3f, sy * 5.f, seed ^ 121u) +
              .4f * vnoise(sx * 5.f - tm * 5.2f + yaw * 3.f, sy * 13.f, seed ^ 122u);
    V3 sd = v3(.82f, .62f, .38f) * (amb * .9f + sc * .55f);
    col = mix(col, sd, F[F_SAND] * sat(.10f + .62f * (n - .25f)));
  }
  return col;
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
    V3 l = norm(v3(u * .74f, v * .74f, 1.f));
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

