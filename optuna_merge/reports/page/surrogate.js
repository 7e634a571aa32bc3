// Predictions of the truth at any task weights: the posterior that
// optuna_merge/surrogate/_export.py wrote, evaluated in the page.
"use strict";

const Surrogate = (() => {
  function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Float64Array(bytes.buffer);
  }

  function squareDistances(x, n, point, tasks, length) {
    const out = new Float64Array(n);
    for (let i = 0; i < n; i++) {
      let sum = 0;
      for (let t = 0; t < tasks; t++) {
        const d = (x[i * tasks + t] - point[t]) / (length ? length[t] : 1);
        sum += d * d;
      }
      out[i] = sum;
    }
    return out;
  }

  // In place, the lower triangle: matrix = L L^T.
  function cholesky(matrix, n) {
    for (let i = 0; i < n; i++) {
      for (let j = 0; j <= i; j++) {
        let sum = matrix[i * n + j];
        for (let k = 0; k < j; k++) sum -= matrix[i * n + k] * matrix[j * n + k];
        matrix[i * n + j] = i === j ? Math.sqrt(sum) : sum / matrix[j * n + j];
      }
    }
    return matrix;
  }

  // |L^-1 k|^2
  function explained(factor, n, kernel) {
    const white = new Float64Array(n);
    let total = 0;
    for (let i = 0; i < n; i++) {
      let sum = kernel[i];
      for (let j = 0; j < i; j++) sum -= factor[i * n + j] * white[j];
      white[i] = sum / factor[i * n + i];
      total += white[i] * white[i];
    }
    return total;
  }

  // What a task's own weight, a multiple of uniform weights, is worth to it.
  function ownCurve(weight, saturation, tasks) {
    return Math.expm1(-weight / saturation) / Math.expm1(-tasks / saturation) - 0.5;
  }

  function previews(data) {
    const x = unpack(data.x), alpha = unpack(data.alpha), noise = unpack(data.noise);
    const length = unpack(data.length), n = alpha.length, tasks = data.tasks;
    const saturations = data.own === null ? [] : Array.from(unpack(data.saturation));
    const amplitude = data.amplitude, unit = tasks / Math.sqrt(tasks / 2);
    const curves = (point) => saturations.map((s) => ownCurve(point[data.own] * unit, s, tasks));
    const shapes = Array.from({ length: n }, (_, i) => curves(x.subarray(i * tasks, (i + 1) * tasks)));
    const linear = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 1);
    let factor = null;

    function kernelAt(point) {
      const kernel = squareDistances(x, n, point, tasks, length), here = curves(point);
      for (let i = 0; i < n; i++) {
        kernel[i] = amplitude / Math.sqrt(1 + kernel[i]) + linear(shapes[i], here);
      }
      return kernel;
    }

    function prepare() {
      if (factor) return;
      const matrix = new Float64Array(n * n);
      for (let i = 0; i < n; i++) {
        matrix.set(kernelAt(x.subarray(i * tasks, (i + 1) * tasks)), i * n);
        matrix[i * n + i] += noise[i];
      }
      factor = cholesky(matrix, n);
    }

    function at(point, withVariance) {
      const kernel = kernelAt(point);
      let mean = 0;
      for (let i = 0; i < n; i++) mean += alpha[i] * kernel[i];
      if (!withVariance) return [mean, 0];
      prepare();
      const here = curves(point), prior = amplitude + linear(here, here);
      return [mean, Math.max(prior - explained(factor, n, kernel), 1e-12)];
    }

    return { at, prepare };
  }

  function truths(data) {
    const below = data.below && process(data.below);
    const [x, p, v, alpha] = [data.x, data.p, data.v, data.alpha].map(unpack);
    const [share, slopeMean, slopeVariance, curveMean, curveVariance] = [
      data.share, data.slope_mean, data.slope_variance, data.curve_mean, data.curve_variance,
    ].map(unpack);
    const [saturation, amplitude, length, noise] = [
      data.saturation, data.amplitude, data.length, data.noise,
    ].map(unpack);
    const n = p.length, size = share.length, tasks = data.tasks, own = data.own;
    const unit = tasks / Math.sqrt(tasks / 2); // from a feature to a multiple of uniform weights
    let factors = null;

    const ownOf = (point) => own === null ? 0 : point[own] * unit;
    const owns = Float64Array.from({ length: n }, (_, i) => own === null ? 0 : x[i * tasks + own] * unit);

    function curve(s, weight) {
      return own === null ? 0 : ownCurve(weight, saturation[s], tasks);
    }

    const jump = (square) => data.jump_variance * (1 + Math.exp(-0.5 * square));

    function kernelOf(s, squares, mean, weight) {
      const kernel = new Float64Array(n), narrow = -0.5 / (length[s] * length[s]);
      const slope = slopeVariance[s] * mean, bend = curveVariance[s] * curve(s, weight);
      const untaught = own !== null && weight === 0;
      for (let i = 0; i < n; i++) {
        kernel[i] = amplitude[s] * Math.exp(narrow * squares[i]) + data.offset_variance;
        kernel[i] += slope * p[i] + bend * curve(s, owns[i]);
        if (untaught && owns[i] === 0) kernel[i] += jump(squares[i]);
      }
      return kernel;
    }

    function prepare() {
      if (factors) return;
      if (below) below.prepare();
      factors = [];
      const squares = [];
      for (let i = 0; i < n; i++) {
        squares.push(squareDistances(x, n, x.subarray(i * tasks, (i + 1) * tasks), tasks));
      }
      for (let s = 0; s < size; s++) {
        const matrix = new Float64Array(n * n);
        for (let i = 0; i < n; i++) {
          matrix.set(kernelOf(s, squares[i], p[i], owns[i]), i * n);
          matrix[i * n + i] += noise[s] + data.jitter + slopeMean[s] * slopeMean[s] * v[i];
        }
        factors.push(cholesky(matrix, n));
      }
    }

    // Mean and variance of the mixture of members, standardised.
    function at(point, withVariance) {
      const [preview, previewVariance] = below ? below.at(point, withVariance) : [0, 0];
      const base = preview * data.unit, baseVariance = previewVariance * data.unit * data.unit;
      if (withVariance) prepare();
      const squares = squareDistances(x, n, point, tasks), weight = ownOf(point);
      let mean = 0, second = 0;
      for (let s = 0; s < size; s++) {
        const kernel = kernelOf(s, squares, base, weight), bend = curve(s, weight);
        let slope = slopeMean[s];
        let predicted = slope * base + curveMean[s] * bend;
        for (let i = 0; i < n; i++) {
          const a = alpha[s * n + i];
          predicted += a * kernel[i];
          slope += slopeVariance[s] * a * p[i];
        }
        mean += share[s] * predicted;
        if (!withVariance) continue;
        let variance = amplitude[s] + data.offset_variance + slopeVariance[s] * base * base;
        variance += curveVariance[s] * bend * bend;
        if (own !== null && weight === 0) variance += jump(0);
        variance -= explained(factors[s], n, kernel);
        variance = Math.max(variance + slope * slope * baseVariance, 1e-10);
        second += share[s] * (variance + predicted * predicted);
      }
      return [mean, Math.max(second - mean * mean, 0)];
    }

    return { at, prepare };
  }

  function process(data) {
    return data.kind === "previews" ? previews(data) : truths(data);
  }

  // An object with predict(weights) -> {mean, std} and mean(weights), in the truths' own unit.
  function load(data) {
    const inner = process(data), root = Math.sqrt(data.tasks / 2);
    const features = (weights) => Float64Array.from(weights, (w) => w * root);
    const unit = (value) => data.sign * (data.location + data.scale * value);
    return {
      prepare: inner.prepare,
      mean: (weights) => unit(inner.at(features(weights), false)[0]),
      predict(weights) {
        const [mean, variance] = inner.at(features(weights), true);
        return { mean: unit(mean), std: Math.sqrt(variance) * data.scale };
      },
    };
  }

  return { load };
})();
