//! From a picture to the input of a model that reads handwriting: the rule of `examples/README.md`, which the web page
//! and the training follow too.

use std::{fs::File, io::BufReader, ops::Range, path::Path};

use anyhow::{Context, bail};
use bytes::Bytes;
use png::{BitDepth, ColorType, Decoder, Transformations};
use skep_tensor::Tensor;
use skep_types::{DataType, Shape};

/// Ink above which a pixel belongs to the drawing (step 2 of the rule).
const INK_THRESHOLD: f64 = 0.25;

/// Ink, 0 (paper) to 1 (black), row by row.
struct Ink {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

/// Reads a PNG as FP32 `[1, 1, side, side]`.
pub(super) fn read(path: &Path, side: usize) -> anyhow::Result<Tensor> {
    let ink = decode(path)
        .with_context(|| format!("cannot read `{}` as a PNG picture", path.display()))?;
    let data: Vec<u8> = shrink(&ink, side)
        .into_iter()
        .flat_map(f32::to_le_bytes)
        .collect();
    Ok(Tensor::new(
        DataType::Fp32,
        Shape::new(&[1, 1, side, side])?,
        Bytes::from(data),
    )?)
}

fn decode(path: &Path) -> anyhow::Result<Ink> {
    let mut decoder = Decoder::new(BufReader::new(File::open(path)?));
    decoder.set_transformations(Transformations::normalize_to_color8());
    let mut reader = decoder.read_info()?;
    let size = reader
        .output_buffer_size()
        .context("the picture is too large")?;
    let mut buffer = vec![0; size];
    let info = reader.next_frame(&mut buffer)?;
    if info.bit_depth != BitDepth::Eight {
        bail!("unexpected bit depth {:?}", info.bit_depth);
    }
    let pixels = &buffer[..info.buffer_size()];
    let values: Vec<f64> = match info.color_type {
        ColorType::Grayscale => pixels.iter().map(|p| ink(f64::from(*p), 255.0)).collect(),
        ColorType::GrayscaleAlpha => pixels
            .chunks_exact(2)
            .map(|p| ink(f64::from(p[0]), f64::from(p[1])))
            .collect(),
        ColorType::Rgb => pixels
            .chunks_exact(3)
            .map(|p| ink(luminance(p), 255.0))
            .collect(),
        ColorType::Rgba => pixels
            .chunks_exact(4)
            .map(|p| ink(luminance(p), f64::from(p[3])))
            .collect(),
        other @ ColorType::Indexed => bail!("unexpected colour type {other:?}"),
    };
    Ok(Ink {
        rows: usize::try_from(info.height)?,
        columns: usize::try_from(info.width)?,
        values,
    })
}

/// Steps 2 to 5: crop, square, shrink, scale.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "pixel counts and ink in [0, 1]"
)]
fn shrink(ink: &Ink, side: usize) -> Vec<f32> {
    let Some((top, bottom, left, right)) = bounding_box(ink) else {
        return vec![0.0; side * side];
    };
    let square = (bottom - top).max(right - left) as f64;
    let y0 = (top as f64 + bottom as f64 - square) / 2.0;
    let x0 = (left as f64 + right as f64 - square) / 2.0;
    let cell = square / side as f64;
    let mut cells = Vec::with_capacity(side * side);
    for r in 0..side {
        for c in 0..side {
            let rows = (y0 + r as f64 * cell, y0 + (r + 1) as f64 * cell);
            let columns = (x0 + c as f64 * cell, x0 + (c + 1) as f64 * cell);
            cells.push(mean(ink, rows, columns) / (cell * cell));
        }
    }
    let largest = cells.iter().copied().fold(0.0, f64::max);
    cells
        .into_iter()
        .map(|value| (value / largest) as f32)
        .collect()
}

/// The ink in an area of the picture; a pixel that lies in it in part counts in part.
fn mean(ink: &Ink, rows: (f64, f64), columns: (f64, f64)) -> f64 {
    let mut sum = 0.0;
    for y in pixels_in(rows, ink.rows) {
        for x in pixels_in(columns, ink.columns) {
            sum += overlap(y, rows) * overlap(x, columns) * ink.values[y * ink.columns + x];
        }
    }
    sum
}

/// The pixels that an interval touches, of so many.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the picture"
)]
fn pixels_in((from, to): (f64, f64), count: usize) -> Range<usize> {
    from.floor().clamp(0.0, count as f64) as usize..to.ceil().clamp(0.0, count as f64) as usize
}

/// How much of a pixel an interval covers.
fn overlap(pixel: usize, (from, to): (f64, f64)) -> f64 {
    (to.min(pixel as f64 + 1.0) - from.max(pixel as f64)).max(0.0)
}

/// Ink on white paper: black is 1.
fn ink(luminance: f64, alpha: f64) -> f64 {
    alpha / 255.0 * (1.0 - luminance / 255.0)
}

fn luminance(rgb: &[u8]) -> f64 {
    0.299 * f64::from(rgb[0]) + 0.587 * f64::from(rgb[1]) + 0.114 * f64::from(rgb[2])
}

/// `(top, bottom, left, right)` around all ink, ends excluded; `None` for blank paper.
fn bounding_box(ink: &Ink) -> Option<(usize, usize, usize, usize)> {
    let marked = ink
        .values
        .iter()
        .enumerate()
        .filter(|(_, value)| **value > INK_THRESHOLD);
    marked
        .map(|(index, _)| (index / ink.columns, index % ink.columns))
        .fold(None, |found, (y, x)| {
            let (top, bottom, left, right) = found.unwrap_or((y, y + 1, x, x + 1));
            Some((top.min(y), bottom.max(y + 1), left.min(x), right.max(x + 1)))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ink(rows: usize, columns: usize, marks: &[(usize, usize, f64)]) -> Ink {
        let mut values = vec![0.0; rows * columns];
        for &(y, x, value) in marks {
            values[y * columns + x] = value;
        }
        Ink {
            rows,
            columns,
            values,
        }
    }

    #[test]
    fn blank_paper_is_zeros() {
        assert_eq!(shrink(&ink(5, 5, &[(2, 2, 0.2)]), 2), [0.0; 4]);
    }

    #[test]
    fn the_drawing_is_cropped_and_scaled() {
        assert_eq!(
            shrink(&ink(9, 9, &[(6, 5, 0.5), (7, 6, 0.25 + 1e-9)]), 2)[..3],
            [1.0, 0.0, 0.0]
        );
    }

    #[test]
    fn a_tall_drawing_is_centred_on_paper_beyond_the_picture() {
        // Two rows, one column at the left edge: the square reaches half a pixel to each side.
        let cells = shrink(&ink(2, 1, &[(0, 0, 1.0), (1, 0, 1.0)]), 2);
        assert_eq!(cells, [1.0, 1.0, 1.0, 1.0]);
        let cells = shrink(&ink(2, 1, &[(0, 0, 1.0), (1, 0, 1.0)]), 4);
        assert_eq!(cells[..4], [0.0, 1.0, 1.0, 0.0]);
    }
}
