// The colours of canvases, from the style sheet: one ramp from the paper to the accent.

let colors = null;

function parse(text) {
  const hex = text.trim().replace("#", "");
  return [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

function build() {
  const style = getComputedStyle(document.documentElement), get = (name) => style.getPropertyValue(name).trim();
  const stops = [get("--heat-0"), get("--heat-1"), get("--heat-2"), get("--heat-3")].map(parse);
  const ramp = Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(at)), part = at - low;
    const mixed = stops[low].map((value, channel) => Math.round(value + (stops[low + 1][channel] - value) * part));
    return `rgb(${mixed.join(",")})`;
  });
  return { ramp, ink: get("--ink"), soft: get("--soft"), line: get("--line"), accent: get("--accent"), card: get("--card") };
}

export function palette() {
  return (colors ??= build());
}

// The colour of a share of the greatest number.
export function heat(share) {
  const { ramp } = palette();
  return ramp[share > 0 ? Math.min(255, Math.round(share * 255)) : 0];
}

export function forgetColors() {
  colors = null;
}
