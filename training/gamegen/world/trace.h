// Where a ray ends: the march over the terrain and the walk over the grid of objects.
#pragma once
#include "held.h"
#include "sky.h"

enum { HIT_SKY, HIT_TERRAIN, HIT_OBJECT, HIT_WATER };

// What is the same for all rays of a frame.
struct Scene {
  const float *f;
  uint32_t seed;
  int biome;
  Biome land;
  float night;
  V3 sun, sun_color, ambient, fog_color, player;
};

HD Scene scene_of(const float *F) {
  Scene s;
  s.f = F;
  s.seed = (uint32_t)F[F_SEED];
  s.biome = (int)F[F_BIOME];
  s.land = biome_of(s.biome);
  s.night = F[F_NIGHT];
  s.sun = v3(F[F_SUNX], F[F_SUNY], F[F_SUNZ]);
  s.sun_color = v3(F[F_SUNC], F[F_SUNC + 1], F[F_SUNC + 2]);
  s.ambient = v3(F[F_AMB], F[F_AMB + 1], F[F_AMB + 2]);
  s.fog_color = v3(F[F_FOGC], F[F_FOGC + 1], F[F_FOGC + 2]);
  s.player = v3(F[F_PX], F[F_PY], F[F_PZ]);
  return s;
}

// Distance to the terrain along a ray, or -1.
HDN float march(V3 ro, V3 rd, const Biome &b, uint32_t seed, float tmax) {
  float maxh = b.amp * 1.05f + 2.f;
  float t = .15f;
  if (ro.y > maxh) {
    if (rd.y >= 0)
      return -1.f;
    t = (maxh - ro.y) / rd.y;
  }
  float tp = t;
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
    t += fmaxf(d * .62f, .05f + .011f * t);
  }
  return t < tmax ? t : -1.f;
}

// Walks the grid cells under a ray; returns true where an object is nearer than h.
HD bool walk_objects(Hit &h, V3 ro, V3 rd, const Scene &sc) {
  bool found = false;
  int cx = (int)floorf(ro.x / CELL), cz = (int)floorf(ro.z / CELL);
  float ix = fabsf(rd.x) < 1e-6f ? 1e6f : 1.f / rd.x, iz = fabsf(rd.z) < 1e-6f ? 1e6f : 1.f / rd.z;
  int sxn = rd.x > 0 ? 1 : -1, szn = rd.z > 0 ? 1 : -1;
  float tx = ((cx + (rd.x > 0)) * CELL - ro.x) * ix, tz = ((cz + (rd.z > 0)) * CELL - ro.z) * iz,
        dx = fabsf(CELL * ix), dz = fabsf(CELL * iz);
  float t = 0.f;
  float h_limit = h.t;
  float lim = fminf(h_limit + 1.f, 150.f);
  float ylim = sc.land.amp + 14.f;
  for (int i = 0; i < 30 && t < lim; i++) {
    float yy = ro.y + rd.y * t;
    if (rd.y > 0 && yy > ylim)
      break;
    Obj o = object_at(cx, cz, sc.biome, sc.land, sc.seed);
    if (o.type != OB_NONE) {
      float ta = t, tb = fminf(tx, tz);
      float ya = ro.y + rd.y * ta, yb = ro.y + rd.y * tb;
      if (fminf(ya, yb) < o.y + o.top + .5f && fmaxf(ya, yb) > o.y - 1.f) {
        float bt = h.t;
        hit_object(h, ro, rd, o, sc.biome, sc.night);
        if (h.t < bt) {
          found = true;
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
  return found;
}

// Nearest hit of a ray that does not start at something held; own: it is the player's character.
HD int trace(Hit &h, V3 ro, V3 rd, const Scene &sc, bool &own) {
  const float TMAX = 190.f;
  int kind = HIT_SKY;
  h.t = TMAX;
  float tw = 1e9f;
  if (sc.land.water > -50.f && rd.y < -1e-4f)
    tw = (sc.land.water - ro.y) / rd.y;
  if (tw < .05f)
    tw = 1e9f;
  float tt = march(ro, rd, sc.land, sc.seed, fminf(TMAX, tw < 1e8f ? tw + .01f : TMAX));
  if (tt > 0 && tt <= tw) {
    h.t = tt;
    kind = HIT_TERRAIN;
  } else if (tw < TMAX) {
    h.t = tw;
    kind = HIT_WATER;
  }
  float before = h.t;
  if (sc.f[F_VIEW] < .5f) {
    hit_char(h, ro, rd, sc.f);
    if (h.t < before) {
      kind = HIT_OBJECT;
      own = true;
    }
  }
  if (walk_objects(h, ro, rd, sc)) {
    kind = HIT_OBJECT;
    own = false;
  }
  return kind;
}
