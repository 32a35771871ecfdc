"use strict";
// Before anything is drawn: faults are written where a test can read them, and the theme is set.
(() => {
  const root = document.documentElement;
  const note = (text) => { root.dataset.errors = `${root.dataset.errors || ""}${text}\n`; };
  addEventListener("error", (event) => note(event.message || `could not load ${event.target.tagName}`), true);
  addEventListener("unhandledrejection", (event) => note(String(event.reason)));
  document.addEventListener("securitypolicyviolation", (event) => note(`blocked ${event.blockedURI} (${event.violatedDirective})`));
  const asked = /[?#&]theme=(dark|light)\b/.exec(location.search + location.hash);
  let kept = null;
  try { kept = localStorage.getItem("livemoments-theme"); } catch { /* no storage for this file */ }
  const theme = asked ? asked[1] : kept;
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;
})();
