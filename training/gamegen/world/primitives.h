// Ray hits on primitives; each keeps the nearest.
#pragma once
#include "vec.h"

struct Hit {
  float t;
  V3 n;
  V3 alb;
  V3 emi;
  float spec;
};

// ---- primitives; ro, rd world; keep the nearest
HD void ell(Hit &h, V3 ro, V3 rd, V3 c, V3 r, V3 alb, V3 emi, float spec) {
  V3 ir = v3(1 / r.x, 1 / r.y, 1 / r.z);
  V3 o = (ro - c) * ir, d = rd * ir;
  float a = dot(d, d), b = dot(o, d), cc = dot(o, o) - 1.f, q = b * b - a * cc;
  if (q < 0)
    return;
  float t = (-b - sqrtf(q)) / a;
  if (t < .02f || t >= h.t)
    return;
  V3 p = o + d * t;
  h.t = t;
  h.n = norm(p * ir);
  h.alb = alb;
  h.emi = emi;
  h.spec = spec;
}

HD void capsule(Hit &h, V3 ro, V3 rd, V3 pa, V3 pb, float r, V3 alb, V3 emi, float spec) {
  V3 ba = pb - pa, oa = ro - pa;
  float baba = dot(ba, ba), bard = dot(ba, rd), baoa = dot(ba, oa), rdoa = dot(rd, oa), oaoa = dot(oa, oa);
  float a = baba - bard * bard, b = baba * rdoa - baoa * bard, c = baba * oaoa - baoa * baoa - r * r * baba,
        q = b * b - a * c;
  if (q < 0)
    return;
  float t = (-b - sqrtf(q)) / fmaxf(a, 1e-6f);
  float y = baoa + t * bard;
  V3 base = pa;
  if (!(y > 0 && y < baba)) {
    V3 oc = y <= 0 ? oa : ro - pb;
    base = y <= 0 ? pa : pb;
    b = dot(rd, oc);
    c = dot(oc, oc) - r * r;
    q = b * b - c;
    if (q < 0)
      return;
    t = -b - sqrtf(q);
    if (t < .02f || t >= h.t)
      return;
    h.t = t;
    h.n = norm(ro + rd * t - base);
  } else {
    if (t < .02f || t >= h.t)
      return;
    h.t = t;
    h.n = norm(ro + rd * t - pa - ba * (y / baba));
  }
  h.alb = alb;
  h.emi = emi;
  h.spec = spec;
}

// vertical frustum: radius r0 at y0, r1 at y1, closed by a disc on the lower side and the upper side
HD void frus(Hit &h, V3 ro, V3 rd, float cx, float cz, float y0, float y1, float r0, float r1, V3 alb, V3 emi,
             float spec) {
  float k = (r1 - r0) / (y1 - y0);
  float ox = ro.x - cx, oz = ro.z - cz, R = r0 + k * (ro.y - y0);
  float a = rd.x * rd.x + rd.z * rd.z - k * k * rd.y * rd.y, b = ox * rd.x + oz * rd.z - R * k * rd.y,
        c = ox * ox + oz * oz - R * R, q = b * b - a * c;
  if (q >= 0 && fabsf(a) > 1e-7f) {
    float sq = sqrtf(q);
    for (int i = 0; i < 2; i++) {
      float t = (i == 0 ? -b - sq : -b + sq) / a;
      float y = ro.y + rd.y * t;
      if (t > .02f && t < h.t && y > y0 && y < y1) {
        float px = ox + rd.x * t, pz = oz + rd.z * t;
        V3 n = norm(v3(px, -k * sqrtf(px * px + pz * pz), pz));
        if (dot(n, rd) < 0) {
          h.t = t;
          h.n = n;
          h.alb = alb;
          h.emi = emi;
          h.spec = spec;
        }
      }
    }
  }
  if (fabsf(rd.y) > 1e-5f) {
    float yc = rd.y > 0 ? y0 : y1, rc = rd.y > 0 ? r0 : r1;
    float t = (yc - ro.y) / rd.y;
    if (t > .02f && t < h.t) {
      float px = ox + rd.x * t, pz = oz + rd.z * t;
      if (px * px + pz * pz < rc * rc) {
        h.t = t;
        h.n = v3(0, rd.y > 0 ? -1.f : 1.f, 0);
        h.alb = alb;
        h.emi = emi;
        h.spec = spec;
      }
    }
  }
}

// box rotated about y: returns the face normal in world space, and the local hit point
HD bool boxr(Hit &h, V3 ro, V3 rd, V3 c, V3 e, float rot, V3 alb, V3 emi, float spec, V3 *lp) {
  float cs = cosf(rot), sn = sinf(rot);
  V3 o = ro - c;
  o = v3(cs * o.x + sn * o.z, o.y, -sn * o.x + cs * o.z);
  V3 d = v3(cs * rd.x + sn * rd.z, rd.y, -sn * rd.x + cs * rd.z);
  V3 m = v3(1 / (fabsf(d.x) < 1e-6f ? 1e-6f : d.x), 1 / (fabsf(d.y) < 1e-6f ? 1e-6f : d.y),
            1 / (fabsf(d.z) < 1e-6f ? 1e-6f : d.z));
  V3 n = m * o;
  V3 k = v3(fabsf(m.x) * e.x, fabsf(m.y) * e.y, fabsf(m.z) * e.z);
  V3 t1 = v3(-n.x - k.x, -n.y - k.y, -n.z - k.z), t2 = v3(-n.x + k.x, -n.y + k.y, -n.z + k.z);
  float tn = fmaxf(fmaxf(t1.x, t1.y), t1.z), tf = fminf(fminf(t2.x, t2.y), t2.z);
  if (tn > tf || tn < .02f || tn >= h.t)
    return false;
  V3 ln = v3(0, 0, 0);
  if (tn == t1.x)
    ln.x = d.x > 0 ? -1.f : 1.f;
  else if (tn == t1.y)
    ln.y = d.y > 0 ? -1.f : 1.f;
  else
    ln.z = d.z > 0 ? -1.f : 1.f;
  h.t = tn;
  h.n = v3(cs * ln.x - sn * ln.z, ln.y, sn * ln.x + cs * ln.z);
  h.alb = alb;
  h.emi = emi;
  h.spec = spec;
  if (lp)
    *lp = o + d * tn;
  return true;
}

// gable roof: ridge along local z, half width w, half length l, base y0, height hh
HD void roof(Hit &h, V3 ro, V3 rd, V3 c, float w, float l, float hh, float rot, V3 alb) {
  float cs = cosf(rot), sn = sinf(rot);
  V3 o = ro - c;
  o = v3(cs * o.x + sn * o.z, o.y, -sn * o.x + cs * o.z);
  V3 d = v3(cs * rd.x + sn * rd.z, rd.y, -sn * rd.x + cs * rd.z);
  float il = 1.f / sqrtf(w * w + hh * hh);
  V3 ns[5] = {v3(hh * il, w * il, 0), v3(-hh * il, w * il, 0), v3(0, 0, 1), v3(0, 0, -1), v3(0, -1, 0)};
  float ds[5] = {w * hh * il, w * hh * il, l, l, 0};
  float tn = -1e9f, tf = 1e9f;
  V3 nn = v3(0, 1, 0);
  for (int i = 0; i < 5; i++) {
    float dn = dot(ns[i], d), on = dot(ns[i], o) - ds[i];
    if (fabsf(dn) < 1e-6f) {
      if (on > 0)
        return;
      continue;
    }
    float t = -on / dn;
    if (dn < 0) {
      if (t > tn) {
        tn = t;
        nn = ns[i];
      }
    } else if (t < tf)
      tf = t;
  }
  if (tn > tf || tn < .02f || tn >= h.t)
    return;
  h.t = tn;
  h.n = v3(cs * nn.x - sn * nn.z, nn.y, sn * nn.x + cs * nn.z);
  h.alb = alb;
  h.emi = v3(0, 0, 0);
  h.spec = .05f;
}
