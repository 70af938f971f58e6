"use strict";
(() => {
  // Plots: what lies under the pointer, as text.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const point = (event) => {
    const hit = event.target.closest && event.target.closest("[data-tip]");
    tip.hidden = !hit;
    if (!hit) return;
    tip.textContent = hit.getAttribute("data-tip");
    const { width, height } = tip.getBoundingClientRect();
    const above = event.clientY - height - 14;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4))}px`;
    tip.style.top = `${above > 4 ? above : event.clientY + 18}px`;
  };
  addEventListener("pointermove", point);
  addEventListener("pointerdown", point);
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  // Structures: balls and sticks from the farthest to the nearest, which fade into the page with depth.
  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const mix = (a, b, t) => a.map((v, i) => v + (b[i] - v) * t);
  const ink = (c) => `rgb(${c.map(Math.round).join()})`;
  const turn = (m, a, b) => {
    const [ca, sa, cb, sb] = [Math.cos(a), Math.sin(a), Math.cos(b), Math.sin(b)];
    const r = [ca, 0, sa, sb * sa, cb, -sb * ca, -cb * sa, sb, cb * ca];
    return m.map((_, k) => [0, 1, 2].reduce((s, j) => s + r[3 * Math.floor(k / 3) + j] * m[3 * j + (k % 3)], 0));
  };

  for (const group of document.querySelectorAll("[data-structures]")) {
    const { colours, radii, bonds, stick } = JSON.parse(group.getAttribute("data-structures"));
    const balls = colours.map(rgb);
    const start = turn([1, 0, 0, 0, 1, 0, 0, 0, 1], 0.35, 0.3);
    let [m, zoom, paper] = [start, 1, false];
    const views = [...group.querySelectorAll("canvas")].map((canvas) => ({
      canvas, x: JSON.parse(canvas.getAttribute("data-x")), reach: +canvas.getAttribute("data-reach"),
    }));

    const draw = ({ canvas, x, reach }) => {
      const ratio = devicePixelRatio || 1;
      const w = Math.round(canvas.clientWidth * ratio), h = Math.round(canvas.clientHeight * ratio);
      if (!w || !h) return;
      if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
      const page = paper ? [255, 255, 255]
        : rgb(getComputedStyle(document.documentElement).getPropertyValue("--page").trim());
      const g = canvas.getContext("2d");
      g.clearRect(0, 0, w, h);
      const scale = (0.53 * Math.min(w, h) * zoom) / reach;
      const at = balls.map((_, i) => {
        const p = [0, 3, 6].map((k) => m[k] * x[3 * i] + m[k + 1] * x[3 * i + 1] + m[k + 2] * x[3 * i + 2]);
        const s = (scale * 5 * reach) / Math.max(0.5 * reach, 5 * reach - p[2]);
        return { x: w / 2 + s * p[0], y: h / 2 - s * p[1], z: p[2], s };
      });
      const fog = (c, z) => mix(c, page, 0.62 * Math.max(0, Math.min(1, (reach - z) / (2 * reach))));
      const parts = at.map((p, i) => [p.z, () => {
        const r = radii[i] * p.s, c = fog(balls[i], p.z);
        const light = g.createRadialGradient(p.x - 0.35 * r, p.y - 0.4 * r, 0.1 * r, p.x, p.y, r);
        light.addColorStop(0, ink(mix(c, [255, 255, 255], 0.45)));
        light.addColorStop(0.5, ink(c));
        light.addColorStop(1, ink(mix(c, [0, 0, 0], 0.38)));
        g.fillStyle = light;
        g.beginPath();
        g.arc(p.x, p.y, r, 0, 7);
        g.fill();
      }]);
      for (const [i, j] of bonds) {
        for (const [a, b] of [[i, j], [j, i]]) {
          const p = at[a], q = at[b], z = (3 * p.z + q.z) / 4;
          // From just inside the ball, which the stick would else cover.
          const length = Math.hypot(...[0, 1, 2].map((k) => x[3 * a + k] - x[3 * b + k])) || 1;
          const f = Math.min(0.5, (0.9 * radii[a]) / length);
          parts.push([z - 1e-3 * reach, () => {
            for (const [width, shade] of [[1, 0.35], [0.66, 0]]) {
              g.strokeStyle = ink(mix(fog(balls[a], z), [0, 0, 0], shade));
              g.lineWidth = 2 * stick * p.s * width;
              g.beginPath();
              g.moveTo(p.x + f * (q.x - p.x), p.y + f * (q.y - p.y));
              g.lineTo((p.x + q.x) / 2, (p.y + q.y) / 2);
              g.stroke();
            }
          }]);
        }
      }
      parts.sort((a, b) => a[0] - b[0]).forEach((part) => part[1]());
    };

    let waiting = false;
    const all = () => views.forEach(draw);
    const later = () => {
      if (!waiting) requestAnimationFrame(() => { waiting = false; all(); });
      waiting = true;
    };
    const zoomBy = (factor) => { zoom = Math.max(0.3, Math.min(8, zoom * factor)); later(); };
    const keys = {
      ArrowLeft: [-0.12, 0], ArrowRight: [0.12, 0], ArrowUp: [0, -0.12], ArrowDown: [0, 0.12],
    };
    for (const { canvas } of views) {
      canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
      canvas.addEventListener("pointermove", (event) => {
        if (!event.buttons) return;
        m = turn(m, event.movementX / 110, event.movementY / 110);
        later();
      });
      canvas.addEventListener("wheel", (event) => {
        // Before it is clicked a structure lets the page scroll.
        if (!group.contains(document.activeElement)) return;
        event.preventDefault();
        zoomBy(Math.exp(-0.0015 * event.deltaY));
      }, { passive: false });
      canvas.addEventListener("dblclick", () => { [m, zoom] = [start, 1]; later(); });
      canvas.addEventListener("keydown", (event) => {
        if (event.key in keys) m = turn(m, ...keys[event.key]);
        else if (event.key === "+" || event.key === "-") zoom *= event.key === "+" ? 1.15 : 1 / 1.15;
        else return;
        event.preventDefault();
        zoomBy(1);
      });
      new ResizeObserver(later).observe(canvas);
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);
    addEventListener("beforeprint", () => { paper = true; all(); });
    addEventListener("afterprint", () => { paper = false; all(); });
    all();
  }
})();
