// Layout of the simulation state and of the parameters of a frame, in floats.
#pragma once
#include "vec.h"

// ------------------------------------------------------------------ state and frame parameters
enum { BI_MEADOW, BI_DESERT, BI_SNOW, BI_FOREST, BI_VOLCANIC, BI_ALIEN, NB };

// state layout (floats)
enum {
  S_X,
  S_Y,
  S_Z,
  S_VY,
  S_YAW,
  S_YV,
  S_VEL,
  S_PHASE,
  S_TIME,
  S_AIR,
  S_TOD0,
  S_WEA0 = S_TOD0 + 4,
  S_EFF0 = S_WEA0 + 4,
  S_TT = S_EFF0 + 4,
  S_TW,
  S_TE,
  S_BIOME,
  S_CHAR,
  S_COL,
  S_VIEW,
  S_SEED,
  S_SUNAZ,
  S_CAMY,
  S_SHIFT,
  S_PHX,
  NSTATE = 40
};

// frame param layout (floats)
enum {
  F_CAMX,
  F_CAMY,
  F_CAMZ,
  F_YAW,
  F_PITCH,
  F_TIME,
  F_SEED,
  F_BIOME,
  F_SUNX,
  F_SUNY,
  F_SUNZ,
  F_SUNC,
  F_AMB = F_SUNC + 3,
  F_TOP = F_AMB + 3,
  F_HOR = F_TOP + 3,
  F_NIGHT = F_HOR + 3,
  F_FOG,
  F_CLOUD,
  F_RAIN,
  F_SNOW,
  F_EMBER,
  F_SAND,
  F_MAGIC,
  F_CHAR,
  F_COL,
  F_VIEW,
  F_PX,
  F_PY,
  F_PZ,
  F_PYAW,
  F_PHASE,
  F_SPEED,
  F_AIR,
  F_ROLL,
  F_FOGC,
  F_CROPX = F_FOGC + 3,
  F_CROPY,
  F_FULLW,
  F_FULLH,
  F_MIST,
  F_GRADE, // color of the light over everything but the player
  NFP = 56
};

enum { A_W, A_S, A_A, A_D, A_SPACE, A_SHIFT, NACT };

// frames that a change of light, weather or effect takes: at 30 the steps between frames were too small to be learnt
#define CHANGE_LENGTH 14.f
