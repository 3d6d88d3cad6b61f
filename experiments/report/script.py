"""Style and script of the charts of a report."""

from base64 import b64encode
from hashlib import sha256

CHART_STYLE = """
.chart svg { display: block; width: 100%; height: auto; touch-action: pan-y }
.chart { position: relative }
.chart .plot { cursor: crosshair }
.chart:focus-visible { outline: 2px solid #24579c }
.chart text { font: 13px system-ui, sans-serif; fill: #444 }
.chart .grid { stroke: #ddd; stroke-width: 1 }
.chart .frame { fill: none; stroke: #888 }
.chart polyline { fill: none; vector-effect: non-scaling-stroke; stroke-linecap: round; stroke-linejoin: round }
.chart .seed { stroke-width: .8; opacity: .35 }
.chart .mean { stroke-width: 2 }
.chart .published { stroke-width: 1 }
.chart .band { opacity: .18 }
.chart .box { fill: #24579c; opacity: .15 }
.chart .cross { stroke: #666; stroke-width: 1; vector-effect: non-scaling-stroke }
.legend { list-style: none; margin: .2rem 0; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem 1rem;
  font-size: .875rem }
.legend svg { display: inline-block; width: 1.8rem; height: .7rem; margin-right: .3rem }
.values { position: absolute; top: .8rem; pointer-events: none; background: #fffe; border: 1px solid #ccc;
  border-radius: .2rem; padding: .2rem .5rem; font-size: .8rem; line-height: 1.35; font-variant-numeric: tabular-nums }
.values:empty { display: none }
.values b { font-weight: 400; display: inline-block; width: .7em; height: .7em; margin-right: .35em }
"""

SCRIPT = """
'use strict'
const short = (v, span) => {  // a number with the digits that matter in an axis of this length
  const unit = [[1e9, 'G'], [1e6, 'M'], [1e3, 'k']].find(([n]) => Math.abs(v) >= n && span >= n / 20) || [1, '']
  const digits = Math.max(0, Math.min(6, 2 - Math.floor(Math.log10(span / unit[0] || 1))))
  return (+(v / unit[0]).toFixed(digits)) + unit[1]
}
for (const chart of document.querySelectorAll('.chart')) {
  const plot = chart.querySelector('.plot'), ticks = chart.querySelector('.ticks'), out = chart.querySelector('.values')
  const [x0, x1, y0, y1] = chart.dataset.range.split(' ').map(Number)
  const [left, top, w, h] = chart.dataset.frame.split(' ').map(Number)
  const cross = plot.querySelector('.cross'), box = plot.querySelector('.box')
  const lines = [...plot.querySelectorAll('[data-name]')].map(line => ({
    name: line.dataset.name, colour: line.getAttribute('stroke'),
    points: line.getAttribute('points').trim().split(' ').map(p => p.split(',').map(Number))}))
  const toX = u => x0 + u / w * (x1 - x0), toY = v => y1 - v / h * (y1 - y0)
  let view = [0, 0, w, h], from = null
  const nice = (a, b) => {
    const rough = (b - a) / 5, ten = 10 ** Math.floor(Math.log10(rough))
    const step = [1, 2, 5, 10].map(n => n * ten).find(s => s >= rough), found = []
    for (let t = Math.ceil(a / step) * step; t <= b + step * 1e-9; t += step) found.push(t)
    return found
  }
  const add = (name, values, text) => {
    const node = ticks.appendChild(document.createElementNS('http://www.w3.org/2000/svg', name))
    for (const key in values) node.setAttribute(key, values[key])
    if (text !== undefined) node.textContent = text
  }
  const show = next => {
    view = next
    plot.setAttribute('viewBox', view.join(' '))
    ticks.replaceChildren()
    const a = toX(view[0]), b = toX(view[0] + view[2]), c = toY(view[1] + view[3]), d = toY(view[1])
    for (const t of nice(a, b)) {
      const x = left + (t - a) / (b - a) * w
      add('line', {x1: x, x2: x, y1: top, y2: top + h, class: 'grid'})
      add('text', {x, y: top + h + 16, 'text-anchor': 'middle'}, short(t, b - a))
    }
    for (const t of nice(c, d)) {
      const y = top + (d - t) / (d - c) * h
      add('line', {x1: left, x2: left + w, y1: y, y2: y, class: 'grid'})
      add('text', {x: left - 6, y: y + 4, 'text-anchor': 'end'}, short(t, d - c))
    }
  }
  const at = event => {
    const frame = chart.querySelector('.frame').getBoundingClientRect()
    const u = (event.clientX - frame.left) / frame.width, v = (event.clientY - frame.top) / frame.height
    return [view[0] + u * view[2], view[1] + v * view[3]]
  }
  const zoom = (factor, [u, v]) => show(view[2] * factor >= w && view[3] * factor >= h
    ? [0, 0, w, h]
    : [u - (u - view[0]) * factor, v - (v - view[1]) * factor, view[2] * factor, view[3] * factor])
  const middle = () => [view[0] + view[2] / 2, view[1] + view[3] / 2]
  const set = (node, values) => { for (const key in values) node.setAttribute(key, values[key]) }
  const hover = ([u, v]) => {
    set(cross, {x1: u, x2: u, y1: view[1], y2: view[1] + view[3], visibility: 'visible'})
    out.replaceChildren()
    const put = (text, colour) => {
      const row = out.appendChild(document.createElement('div'))
      if (colour) row.appendChild(document.createElement('b')).style.background = colour
      row.append(text)
    }
    put(chart.dataset.x + ' ' + short(toX(u), (x1 - x0) * view[2] / w))
    for (const line of lines) {
      const i = line.points.findIndex(p => p[0] >= u), q = line.points[i], p = line.points[Math.max(i - 1, 0)]
      if (i < 0 || p[0] > u) continue  // before its first point, or after its last one
      const v = q[0] > p[0] ? p[1] + (u - p[0]) / (q[0] - p[0]) * (q[1] - p[1]) : q[1]
      put(line.name + ': ' + short(toY(v), (y1 - y0) * view[3] / h), line.colour)
    }
    const left = u > view[0] + view[2] / 2  // the values must not cover what the pointer is at
    out.style.left = left ? '12%' : 'auto'
    out.style.right = left ? 'auto' : '4%'
  }
  plot.addEventListener('pointermove', event => {
    const p = at(event)
    hover(p)
    if (from) set(box, {x: Math.min(p[0], from[0]), y: Math.min(p[1], from[1]), visibility: 'visible',
      width: Math.abs(p[0] - from[0]), height: Math.abs(p[1] - from[1])})
  })
  plot.addEventListener('pointerleave', () => {
    if (!from) { out.replaceChildren(); cross.setAttribute('visibility', 'hidden') }
  })
  plot.addEventListener('pointerdown', event => {
    if (event.pointerType === 'touch') return hover(at(event))
    from = at(event)
    plot.setPointerCapture(event.pointerId)
  })
  plot.addEventListener('pointerup', event => {
    const p = at(event), [a, b] = from ? [Math.abs(p[0] - from[0]), Math.abs(p[1] - from[1])] : [0, 0]
    if (a > view[2] / 50 && b > view[3] / 50) show([Math.min(p[0], from[0]), Math.min(p[1], from[1]), a, b])
    from = null
    box.setAttribute('visibility', 'hidden')
  })
  plot.addEventListener('dblclick', () => show([0, 0, w, h]))
  chart.addEventListener('wheel', event => {  // only where the reader has clicked: else the page would not scroll
    if (document.activeElement !== chart) return
    event.preventDefault()
    zoom(event.deltaY < 0 ? 0.8 : 1.25, at(event))
  }, {passive: false})
  chart.addEventListener('keydown', event => {
    const move = {ArrowLeft: [-.1, 0], ArrowRight: [.1, 0], ArrowUp: [0, -.1], ArrowDown: [0, .1]}[event.key]
    if (event.key === '+') zoom(0.8, middle())
    else if (event.key === '-') zoom(1.25, middle())
    else if (event.key === '0') show([0, 0, w, h])
    else if (move) show([view[0] + move[0] * view[2], view[1] + move[1] * view[3], view[2], view[3]])
    else return
    event.preventDefault()
  })
}
"""

SCRIPT_HASH = f"sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}"
"""Hash by which a page's Content-Security-Policy admits this script and no other."""
