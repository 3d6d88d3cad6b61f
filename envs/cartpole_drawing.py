"""Drawing of the cart-pole, in a module of its own because it imports Pillow."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 480, 300
OVERSAMPLING = 3  # drawn this much larger and scaled down, which smooths the edges
PIXELS_PER_METRE = 84.0  # leaves 38 px beside each end of the track for half a cart
RAIL_Y = 212.0
CART_WIDTH, CART_HEIGHT, WHEEL_RADIUS = 62.0, 26.0, 7.0
JOINT_Y = RAIL_Y - 2 * WHEEL_RADIUS - CART_HEIGHT + 5
POLE_WIDTH = 9.0
ARROW_LENGTH = 34.0  # at full force; still inside the frame when the cart is at an end of the track
ARROW_Y = RAIL_Y + 56

SKY = (247, 248, 251)
FLOOR = (233, 236, 242)
INK = (38, 46, 62)
FAINT = (168, 176, 190)
GAUGE = (213, 218, 228)
SAFE = (232, 241, 238)
STEEL = (96, 108, 128)
CART = (52, 84, 138)
CART_SHINE = (88, 124, 184)
POLE = (214, 143, 72)
STOP = (200, 70, 66)
PUSH = (30, 150, 118)

Colour = tuple[int, int, int]
Point = tuple[float, float]


class CartPoleDrawing:
    """Draws frames of 480 x 300 pixels; the background is drawn once."""

    def __init__(self, x_limit: float, theta_limit: float | None, pole_length: float) -> None:
        """Draw the background.

        Args:
            x_limit: Distance from the centre to the ends of the track, in metres.
            theta_limit: Angle from upright beyond which the pole has fallen, in radians; None: no limit.
            pole_length: Length of the pole, in metres.
        """
        self._x_limit = x_limit
        self._theta_limit = theta_limit
        self._pole_pixels = pole_length * PIXELS_PER_METRE
        self._small_font = ImageFont.load_default(11)
        self._font = ImageFont.load_default(15)
        self._background = Image.new("RGB", (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING), SKY)
        self._draw_track(_Pen(self._background))

    def frame(self, state: NDArray[np.float64], action: float, n_steps: int) -> NDArray[np.uint8]:
        """Draw one frame.

        Args:
            state: x (m), x_dot (m/s), theta (rad), theta_dot (rad/s). Shape: (4,).
            action: Last action, in [-1, 1]; the arrow's length.
            n_steps: Step count, written in the corner.

        Returns:
            The frame. Shape: (300, 480, 3).
        """
        image = self._background.copy()
        x = WIDTH / 2 + float(state[0]) * PIXELS_PER_METRE
        self._draw_cart_and_pole(_Pen(image), x, float(state[2]), action)
        image = image.reduce(OVERSAMPLING)
        self._write(ImageDraw.Draw(image), state, n_steps)
        return np.array(image)

    def _draw_track(self, pen: _Pen) -> None:
        pen.rectangle((0, RAIL_Y, WIDTH, HEIGHT), FLOOR)
        for metre in range(-2, 3):
            x = WIDTH / 2 + metre * PIXELS_PER_METRE
            pen.line((x, RAIL_Y), (x, RAIL_Y + 8), 1.2, FAINT)
        pen.line((0, RAIL_Y + 1.5), (WIDTH, RAIL_Y + 1.5), 3, STEEL)
        for side in (-1, 1):
            x = WIDTH / 2 + side * self._x_limit * PIXELS_PER_METRE
            pen.rectangle((x - 1.5, RAIL_Y - 44, x + 1.5, RAIL_Y + 10), STOP)
            pen.disc((x, RAIL_Y - 44), 4.5, STOP)

    def _draw_cart_and_pole(self, pen: _Pen, x: float, theta: float, action: float) -> None:
        joint = (x, JOINT_Y)
        if self._theta_limit is not None:
            pen.fan(joint, self._pole_pixels + 12, self._theta_limit, SAFE)
        bottom = RAIL_Y - 2 * WHEEL_RADIUS + 4  # the wheels reach a little into the body
        for side in (-1, 1):
            wheel = (x + side * CART_WIDTH * 0.29, RAIL_Y - WHEEL_RADIUS)
            pen.disc(wheel, WHEEL_RADIUS, INK)
            pen.disc(wheel, WHEEL_RADIUS * 0.4, FAINT)
        left, right, top = x - CART_WIDTH / 2, x + CART_WIDTH / 2, bottom - CART_HEIGHT
        pen.rectangle((left, top, right, bottom), CART, radius=5)
        pen.rectangle((left + 5, top + 4, right - 5, top + 7), CART_SHINE, radius=1.5)
        tip = (x + self._pole_pixels * math.sin(theta), JOINT_Y - self._pole_pixels * math.cos(theta))
        fallen = self._theta_limit is not None and abs(theta) > self._theta_limit
        pen.line(joint, tip, POLE_WIDTH, STOP if fallen else POLE, round_ends=True)
        pen.disc(joint, POLE_WIDTH * 0.72, INK)
        pen.disc(joint, POLE_WIDTH * 0.3, SKY)
        pen.rectangle((x - ARROW_LENGTH, ARROW_Y - 2.5, x + ARROW_LENGTH, ARROW_Y + 2.5), GAUGE, radius=2.5)
        if action:
            pen.arrow((x, ARROW_Y), action * ARROW_LENGTH, PUSH)
        pen.disc((x, ARROW_Y), 3.5, STEEL)

    def _write(self, draw: ImageDraw.ImageDraw, state: NDArray[np.float64], n_steps: int) -> None:
        draw.text((16, 14), f"step {n_steps}", fill=INK, font=self._font)
        tilt = math.degrees(math.remainder(state[2], 2 * math.pi))
        numbers = f"x {state[0]:+.2f} m     tilt {tilt:+.1f}°"
        draw.text((WIDTH - 16, 16), numbers, fill=STEEL, font=self._small_font, anchor="ra")
        for mark in (-self._x_limit, -1.0, 0.0, 1.0, self._x_limit):
            x = WIDTH / 2 + mark * PIXELS_PER_METRE
            draw.text((x, RAIL_Y + 14), f"{mark:g}", fill=STEEL, font=self._small_font, anchor="ma")


class _Pen:
    """ImageDraw in the pixels of the finished frame."""

    def __init__(self, image: Image.Image) -> None:
        self._draw = ImageDraw.Draw(image)

    def rectangle(self, box: tuple[float, float, float, float], colour: Colour, radius: float = 0.0) -> None:
        corners = [round(value * OVERSAMPLING) for value in box]
        corners[2] -= 1  # Pillow includes the far corner
        corners[3] -= 1
        self._draw.rounded_rectangle(corners, radius * OVERSAMPLING, fill=colour)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        x, y, r = centre[0] * OVERSAMPLING, centre[1] * OVERSAMPLING, radius * OVERSAMPLING
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def line(self, start: Point, end: Point, width: float, colour: Colour, *, round_ends: bool = False) -> None:
        length = math.hypot(end[0] - start[0], end[1] - start[1])
        across_x = (start[1] - end[1]) / length * width / 2
        across_y = (end[0] - start[0]) / length * width / 2
        self._polygon(
            (start[0] + across_x, start[1] + across_y),
            (end[0] + across_x, end[1] + across_y),
            (end[0] - across_x, end[1] - across_y),
            (start[0] - across_x, start[1] - across_y),
            colour=colour,
        )
        if round_ends:
            self.disc(start, width / 2, colour)
            self.disc(end, width / 2, colour)

    def arrow(self, tail: Point, length: float, colour: Colour) -> None:
        """Draw a horizontal arrow; a negative length points left."""
        x, y = tail
        head = math.copysign(min(11.0, abs(length)), length)
        if abs(length) > abs(head):
            self.line(tail, (x + length - head, y), 5, colour)
        self._polygon((x + length - head, y - 7), (x + length, y), (x + length - head, y + 7), colour=colour)

    def fan(self, centre: Point, radius: float, half_angle: float, colour: Colour) -> None:
        """Draw a sector of a circle, symmetric about the upright."""
        x, y, r = centre[0] * OVERSAMPLING, centre[1] * OVERSAMPLING, radius * OVERSAMPLING
        degrees = math.degrees(half_angle)
        self._draw.pieslice((x - r, y - r, x + r, y + r), -90 - degrees, -90 + degrees, fill=colour)

    def _polygon(self, *points: Point, colour: Colour) -> None:
        self._draw.polygon([(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points], fill=colour)
