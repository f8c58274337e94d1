// Objects on a jittered grid.
#pragma once
#include "terrain.h"

// ------------------------------------------------------------------ objects on a jittered grid
#define CELL 9.0f

enum {
  OB_NONE,
  OB_TREE,
  OB_PINE,
  OB_ROCK,
  OB_HOUSE,
  OB_CACTUS,
  OB_CRYSTAL,
  OB_MUSH,
  OB_DEAD,
  OB_SPIRE,
  OB_BUSH,
  OB_TOWER
};

struct Obj {
  int type;
  float x, y, z, s, rot, top, rad;
  uint32_t h;
};

HDN Obj object_at(int cx, int cz, int bi, const Biome &b, uint32_t seed) {
  Obj o;
  o.type = OB_NONE;
  o.x = o.y = o.z = 0;
  o.s = 1;
  o.rot = 0;
  o.top = 0;
  o.rad = 0;
  uint32_t h = hash3i(cx, cz, seed ^ 0x51u);
  o.h = h;
  float clump = vnoise(cx * .37f, cz * .37f, seed ^ 5u);
  if (u01(h) > b.dens * (.35f + 1.3f * clump))
    return o;
  h = nexth(h);
  float r1 = u01(h);
  h = nexth(h);
  float r2 = u01(h);
  h = nexth(h);
  float r3 = u01(h);
  h = nexth(h);
  float r4 = u01(h);
  o.x = (cx + .34f + .32f * r1) * CELL;
  o.z = (cz + .34f + .32f * r2) * CELL;
  o.s = .75f + .5f * r3;
  o.rot = r4 * 6.28318f;
  h = nexth(h);
  float k = u01(h);
  o.h = h;
  switch (bi) {
  case BI_MEADOW:
    o.type = k < .50f ? OB_TREE : k < .72f ? OB_BUSH : k < .84f ? OB_ROCK : k < .95f ? OB_HOUSE : OB_TOWER;
    break;
  case BI_DESERT:
    o.type = k < .45f ? OB_CACTUS : k < .78f ? OB_ROCK : k < .88f ? OB_SPIRE : k < .96f ? OB_HOUSE : OB_TOWER;
    break;
  case BI_SNOW:
    o.type = k < .70f ? OB_PINE : k < .86f ? OB_ROCK : k < .95f ? OB_HOUSE : OB_TOWER;
    break;
  case BI_FOREST:
    o.type = k < .48f ? OB_PINE : k < .76f ? OB_TREE : k < .93f ? OB_ROCK : k < .97f ? OB_BUSH : OB_TOWER;
    break;
  case BI_VOLCANIC:
    o.type = k < .32f ? OB_DEAD : k < .62f ? OB_ROCK : k < .92f ? OB_SPIRE : OB_TOWER;
    break;
  default:
    o.type = k < .42f ? OB_CRYSTAL : k < .78f ? OB_MUSH : k < .92f ? OB_ROCK : OB_SPIRE;
    break;
  }
  if (pathmask(o.x, o.z, seed) > .05f) {
    o.type = OB_NONE;
    return o;
  }
  o.y = height(o.x, o.z, b, seed, 3);
  if (o.y < b.water + .35f) {
    o.type = OB_NONE;
    return o;
  }
  switch (o.type) { // rad: bounding radius (must stay below ~.34 cell = 3.06)
  case OB_TREE:
    o.top = 6.6f * o.s;
    o.rad = 2.4f * o.s;
    break;
  case OB_PINE:
    o.top = 8.2f * o.s;
    o.rad = 2.0f * o.s;
    break;
  case OB_ROCK:
    o.top = 1.9f * o.s;
    o.rad = 1.9f * o.s;
    break;
  case OB_HOUSE:
    o.s = 1.f;
    o.top = 5.2f;
    o.rad = 3.05f;
    break;
  case OB_CACTUS:
    o.top = 4.2f * o.s;
    o.rad = 1.5f * o.s;
    break;
  case OB_CRYSTAL:
    o.top = 5.4f * o.s;
    o.rad = 1.7f * o.s;
    break;
  case OB_MUSH:
    o.top = 5.6f * o.s;
    o.rad = 2.3f * o.s;
    break;
  case OB_DEAD:
    o.top = 5.0f * o.s;
    o.rad = 1.9f * o.s;
    break;
  case OB_SPIRE:
    o.top = 8.0f * o.s;
    o.rad = 1.9f * o.s;
    break;
  case OB_BUSH:
    o.top = 1.5f * o.s;
    o.rad = 1.3f * o.s;
    break;
  default:
    o.s = 1.f;
    o.top = 10.5f;
    o.rad = 2.3f;
    break;
  }
  return o;
}

HD float obj_core(const Obj &o) { // collision radius
  switch (o.type) {
  case OB_TREE:
  case OB_PINE:
  case OB_MUSH:
  case OB_DEAD:
    return .7f;
  case OB_HOUSE:
    return 3.1f;
  case OB_TOWER:
    return 2.3f;
  case OB_CACTUS:
    return .8f;
  case OB_NONE:
    return 0.f;
  case OB_BUSH:
    return 0.f;
  default:
    return o.rad * .95f;
  }
}
