// Color of a hit: terrain, water and lava, shadows, light of the sun and of effects.
#pragma once
#include "trace.h"

// Stones, tufts, leaves or crusts: two colors of each biome.
HD V3 litter_color(int biome, bool second) {
  switch (biome) {
  case BI_MEADOW:
    return second ? v3(.66f, .63f, .56f) : v3(.12f, .29f, .08f);
  case BI_DESERT:
    return second ? v3(.99f, .92f, .70f) : v3(.50f, .31f, .18f);
  case BI_SNOW:
    return second ? v3(.50f, .68f, .84f) : v3(.31f, .35f, .43f);
  case BI_FOREST:
    return second ? v3(.36f, .52f, .14f) : v3(.58f, .33f, .10f);
  case BI_VOLCANIC:
    return second ? v3(.50f, .45f, .44f) : v3(.06f, .05f, .06f);
  default:
    return second ? v3(.16f, .72f, .68f) : v3(.17f, .07f, .28f);
  }
}

// What lies about on the ground, one thing at most in a cell of a bent grid: without it bare ground does not show how
// fast one walks. Fades where a pixel would hold several.
#define LITTER 1.7f
HD V3 litter(V3 ground, V3 p, float away, float slope, const Scene &sc) {
  float x = p.x / LITTER + 1.1f * vnoise(p.x * .31f, p.z * .31f, sc.seed ^ 17u),
        z = p.z / LITTER + 1.1f * vnoise(p.x * .31f, p.z * .31f, sc.seed ^ 18u);
  int cx = (int)floorf(x), cz = (int)floorf(z);
  uint32_t k = hash3i(cx, cz, sc.seed ^ 19u);
  if (u01(k) > .62f)
    return ground;
  k = nexth(k);
  float size = .16f + .18f * u01(k);
  k = nexth(k);
  float dx = x - cx - (size + (1.f - 2.f * size) * u01(k));
  k = nexth(k);
  float dz = z - cz - (size + (1.f - 2.f * size) * u01(k));
  k = nexth(k);
  float turn = u01(k) * 3.14159f, c = cosf(turn), s = sinf(turn);
  float u = dx * c + dz * s, v = dz * c - dx * s;
  float r = sqrtf(u * u + 1.7f * v * v) / size + .5f * (vnoise(p.x * 3.1f, p.z * 3.1f, sc.seed ^ 20u) - .5f);
  float lit = 1.f + .35f * sat(r) * (dx * sc.sun.x + dz * sc.sun.z) / size; // brighter towards the sun: it is not flat
  k = nexth(k);
  V3 color = litter_color(sc.biome, u01(k) < .35f) * (lit * (.85f + .3f * u01(nexth(k))));
  return mix(ground, color, sstep(1.f, .72f, r) * sstep(.66f, .82f, slope) * expf(-away * .022f));
}

// Normal, albedo and glow of the ground.
HD void terrain_surface(Hit &h, V3 p, const Scene &sc) {
  float wet = sc.f[F_RAIN];
  float e = .06f + .004f * h.t;
  int oc = h.t < 45.f ? 5 : 4;
  float hx = height(p.x + e, p.z, sc.land, sc.seed, oc) - height(p.x - e, p.z, sc.land, sc.seed, oc),
        hz = height(p.x, p.z + e, sc.land, sc.seed, oc) - height(p.x, p.z - e, sc.land, sc.seed, oc);
  h.n = norm(v3(-hx, 2.f * e, -hz));
  float slope = h.n.y, n1 = vnoise(p.x * .11f, p.z * .11f, sc.seed ^ 11u),
        n2 = vnoise(p.x * .55f, p.z * .55f, sc.seed ^ 12u),
        n3 = vnoise(p.x * 2.3f, p.z * 2.3f, sc.seed ^ 13u), fd = expf(-h.t * .03f);
  float rel = (p.y - fmaxf(sc.land.water, -6.f)) / (sc.land.amp * .8f);
  V3 a = mix(sc.land.mid, sc.land.hi, sat(n1 * 1.5f - .3f));
  a = mix(sc.land.lo, a, sstep(.05f, .16f, rel + .06f * (n2 - .5f)));
  if (sc.biome == BI_DESERT) {
    float rip = .5f + .5f * sinf(p.x * 2.2f + p.z * .9f + 3.f * n1 + 1.5f * n2);
    a = a * (1.f - .10f * rip * fd);
  }
  a = mix(a, sc.land.rock * (.8f + .4f * n2), sstep(.80f, .66f, slope + .06f * (n2 - .5f)));
  a = mix(a, sc.land.path * (.9f + .2f * n2), pathmask(p.x, p.z, sc.seed) * sstep(.6f, .8f, slope));
  float bare = sstep(.50f, .62f, vnoise(p.x * .38f + 5.f, p.z * .38f, sc.seed ^ 21u));
  a = mix(a, mix(a, sc.land.path, .5f) * (sc.biome == BI_VOLCANIC ? 1.5f : .78f), bare);
  a = a * (.78f + .34f * n2 + .20f * (n3 - .5f) * fd);
  if (sc.biome == BI_MEADOW && n1 > .55f && slope > .85f) {
    float n5 = vnoise(p.x * 1.6f + 7.f, p.z * 1.6f, sc.seed ^ 14u);
    a = mix(a, n1 > .7f ? v3(.9f, .8f, .25f) : v3(.85f, .55f, .75f),
            sstep(.80f, .88f, n5) * .75f * sat(fd * 2.f));
  }
  if (sc.biome == BI_VOLCANIC) {
    float cr = fabsf(vnoise(p.x * .16f, p.z * .16f, sc.seed ^ 15u) - .5f);
    float g = sstep(.040f, .010f, cr) * sstep(.85f, .35f, rel);
    h.emi = v3(1.f, .32f, .06f) * g;
  }
  if (sc.biome == BI_ALIEN) {
    float g = sstep(.72f, .86f, vnoise(p.x * .9f, p.z * .9f, sc.seed ^ 16u)) * fd;
    h.emi = v3(.10f, .55f, .60f) * (g * (.12f + .45f * sc.night));
  }
  a = litter(a, p, h.t, slope, sc);
  float sn = sc.f[F_SNOW];
  a = mix(a, v3(.9f, .93f, .97f), sn * .45f * sstep(.7f, .9f, slope) * (.5f + .5f * n2));
  h.alb = a * (1.f - .28f * wet);
  h.spec = .25f * wet;
  float wa = sat((p.y - sc.land.water) * 2.2f);
  if (sc.land.water > -50.f && sc.land.lava < .5f)
    h.alb = h.alb * (.6f + .4f * wa);
}

// Lava sets the hit's glow; other water returns its color at once.
HD V3 water_surface(Hit &h, V3 p, V3 rd, const Scene &sc) {
  V3 col = v3(0, 0, 0);
  float dpt = clampf(sc.land.water - height(p.x, p.z, sc.land, sc.seed, 3), 0.f, 6.f), tm = sc.f[F_TIME];
  V3 n = v3(.05f * sinf(p.x * .9f + tm * 1.6f) + .035f * sinf(p.z * 1.7f - tm * 2.1f + p.x * .4f), 1.f,
            .05f * sinf(p.z * 1.1f + tm * 1.3f) + .03f * sinf(p.x * 2.1f + tm * 1.9f));
  n.x *= expf(-h.t * .012f);
  n.z *= expf(-h.t * .012f);
  n = norm(n);
  if (sc.land.lava > .5f) {
    float l = .6f * vnoise(p.x * .35f + tm * .15f, p.z * .35f, sc.seed ^ 31u) +
              .4f * vnoise(p.x * 1.1f - tm * .2f, p.z * 1.1f, sc.seed ^ 32u);
    h.alb = v3(.1f, .03f, .02f);
    h.emi = mix(v3(.30f, .03f, .01f), v3(1.25f, .55f, .10f), sstep(.32f, .72f, l));
    h.n = v3(0, 1, 0);
  } else {
    V3 r = rd - n * (2.f * dot(rd, n));
    r.y = fabsf(r.y) + .02f;
    r = norm(r);
    V3 sk = sky(r, sc.f, sc.seed, false);
    float fr = .06f + .94f * powf(1.f - sat(-dot(rd, n)), 5.f);
    V3 base = mix(mix(sc.land.lo, sc.land.wcol, .55f), sc.land.wcol, sat(dpt * .6f)) *
              (sc.ambient + sc.sun_color * .45f);
    float sp = powf(sat(dot(r, sc.sun)), 160.f);
    float foam = sstep(.35f, .0f, dpt + .12f * sinf(p.x * 1.3f + p.z + tm * 2.f));
    col = mix(base, sk, sc.biome == BI_SNOW ? fr * .5f : fr) + sc.sun_color * (sp * 1.2f);
    col = mix(col, (sc.ambient + sc.sun_color * .7f), foam * .55f);
    if (sc.biome == BI_ALIEN)
      col = col + v3(.02f, .25f, .25f) * (.3f + .5f * sc.night);
  }
  return col;
}

// Share of the sun that the terrain lets through, coarse.
HD float terrain_shadow(const Hit &h, V3 p, const Scene &sc) {
  float shadow = 1.f;
  float st = 1.0f;
  V3 q = p + h.n * .15f;
  for (int i = 0; i < 9; i++) {
    float yy = q.y + sc.sun.y * st;
    float d = yy - height(q.x + sc.sun.x * st, q.z + sc.sun.z * st, sc.land, sc.seed, 3);
    shadow = fminf(shadow, sat(.5f + 5.f * d / st));
    st *= 1.55f;
    if (yy > sc.land.amp + 2.f)
      break;
  }
  return shadow;
}

// Shadows of objects and of the character on the ground near them; also darkens ao.
HD void contact_shadows(const Hit &h, V3 p, const Scene &sc, float &shadow, float &ao) {
  int cx = (int)floorf(p.x / CELL), cz = (int)floorf(p.z / CELL);
  V3 sh = v3(sc.sun.x, 0, sc.sun.z) * (1.f / fmaxf(sc.sun.y, .25f));
  for (int i = 0; i < 2; i++) {
    float ox = p.x + sh.x * (i ? 3.2f : 0.f), oz = p.z + sh.z * (i ? 3.2f : 0.f);
    int ax = i ? (int)floorf(ox / CELL) : cx, az = i ? (int)floorf(oz / CELL) : cz;
    if (i && ax == cx && az == cz)
      break;
    if (h.t > 90.f)
      break;
    Obj o = object_at(ax, az, sc.biome, sc.land, sc.seed);
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
  if (sc.f[F_VIEW] < .5f) {
    float dx = p.x - sc.player.x, dz = p.z - sc.player.z, hgt = fmaxf(sc.player.y - p.y, 0.f);
    V3 s2 = sh * (1.5f);
    float ss = s2.x * s2.x + s2.z * s2.z + 1e-4f;
    float ddx = dx + sh.x * hgt, ddz = dz + sh.z * hgt;
    float k = clampf(-(ddx * s2.x + ddz * s2.z) / ss, 0.f, 1.f);
    float qx = ddx + s2.x * k, qz = ddz + s2.z * k;
    float rr = (int)sc.f[F_CHAR] == 2 ? .75f : .45f;
    shadow *= 1.f - .75f * sstep(rr * 1.3f, rr * .6f, sqrtf(qx * qx + qz * qz));
    ao *= 1.f - .45f * sstep(.9f, .2f, sqrtf(dx * dx + dz * dz) + hgt * .4f);
  }
}

// Light of fire, magic and burning ground.
HD V3 effect_light(V3 col, const Hit &h, V3 p, int kind, const Scene &sc) {
  if (sc.f[F_EMBER] > .01f) {
    float fl = .75f + .25f * vnoise(sc.f[F_TIME] * 4.f, 0.f, 9u);
    float dx = p.x - sc.player.x, dz = p.z - sc.player.z;
    col = col + h.alb * v3(1.f, .42f, .12f) *
                    (sc.f[F_EMBER] * fl * (.14f + .7f / (1.f + .06f * (dx * dx + dz * dz))));
  }
  if (sc.f[F_MAGIC] > .01f) {
    float dx = p.x - sc.player.x, dz = p.z - sc.player.z, r = sqrtf(dx * dx + dz * dz);
    col = col + h.alb * v3(.35f, .45f, 1.f) * (sc.f[F_MAGIC] * (.14f + .60f / (1.f + .08f * r * r)));
    if (kind == HIT_TERRAIN) {
      float at = sc.f[F_VIEW] > .5f ? 4.6f : 1.7f; // where a first-person camera sees it too
      float ring = sstep(.16f, .03f, fabsf(r - at - .25f * sinf(sc.f[F_TIME] * 2.f)));
      col = col + v3(.30f, .75f, 1.f) * (ring * sc.f[F_MAGIC] * .85f);
    }
  }
  if (kind == HIT_TERRAIN && sc.f[F_EMBER] > .01f) { // burning patches
    float n = vnoise(p.x * .33f, p.z * .33f, sc.seed ^ 91u),
          fl = vnoise(p.x * 1.4f, p.z * 1.4f - sc.f[F_TIME] * 2.f, sc.seed ^ 92u);
    col = col + v3(1.1f, .45f, .08f) * (sstep(.64f, .74f, n) * (.4f + .8f * fl) * sc.f[F_EMBER]);
  }
  return col;
}

// Diffuse, ambient, specular and rim light of a hit. held: something in the player's hands, which gets no
// shadow.
HD V3 lit_surface(const Hit &h, V3 p, V3 rd, int kind, bool own, bool held, const Scene &sc) {
  float shadow = 1.f, ao = 1.f;
  float nl = dot(h.n, sc.sun);
  if (!held && kind != HIT_WATER && nl > 0.f)
    shadow = terrain_shadow(h, p, sc);
  if (kind == HIT_TERRAIN)
    contact_shadows(h, p, sc, shadow, ao);
  float dif = sat(nl * .9f + .1f) * shadow;
  float hemi = .62f + .38f * h.n.y;
  V3 hv = norm(sc.sun - rd);
  float sp = h.spec > 0 ? h.spec * powf(sat(dot(h.n, hv)), 28.f) * shadow : 0.f;
  float rim = own ? .28f * powf(1.f - sat(-dot(h.n, rd)), 3.f) : 0.f;
  V3 light = sc.sun_color * dif + sc.ambient * (hemi * ao);
  if (own) { // nearly white and never dark, so that the color it wears survives night, fire and magic
    float l = .30f * light.x + .50f * light.y + .20f * light.z;
    light = mix(light, v3(l, l, l), .8f) * .74f + v3(.10f, .10f, .10f) * (1.f + hemi * 1.8f * sc.night);
    return h.alb * light + sc.sun_color * (sp * .5f) + h.emi + sc.ambient * (rim * .5f);
  }
  V3 col = h.alb * light + sc.sun_color * sp + h.emi;
  return effect_light(col, h, p, kind, sc);
}
