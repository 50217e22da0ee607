// Which rows go to which expert, and moving them there and back.
//
// An *entry* is a choice of a row: entry row * top_k + j. Entries are sorted by expert (stably), so
// that each expert's rows are neighbours; a *tile* is up to TILE neighbours of one expert.

// The top_k largest logits of each row, ties to the lowest index, what is not a number last; and
// their sigmoids. One warp a row, eight rows a block.
KERNEL(256) route(u32 *experts, float *weights, const float *logits, u32 rows, u32 num_experts,
                  u32 top_k) {
  begin_launch();
  u32 row = blockIdx.x * 8 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  bool inside = row < rows;
  const float *values = logits + (u64)(inside ? row : 0) * num_experts;
  float last = infinity();
  u32 last_index = 0;
  for (u32 j = 0; j < top_k; j++) {
    // The first that comes after the last one chosen, in the order of choice.
    float best = -infinity();
    u32 best_index = num_experts;
    for (u32 i = lane; i < num_experts; i += WARP) {
      float key = values[i] == values[i] ? values[i] : -infinity();
      bool later = j == 0 || key < last || (key == last && i > last_index);
      bool better = key > best || (key == best && i < best_index);
      if (later && better) best = key, best_index = i;
    }
#pragma unroll
    for (u32 offset = 16; offset; offset >>= 1) {
      float other = __shfl_xor_sync(FULL_WARP, best, offset);
      u32 other_index = __shfl_xor_sync(FULL_WARP, best_index, offset);
      if (other > best || (other == best && other_index < best_index))
        best = other, best_index = other_index;
    }
    last = best, last_index = best_index;
    if (inside && lane == 0) {
      experts[row * top_k + j] = best_index;
      weights[row * top_k + j] = 1.0f / (1.0f + expf(-values[best_index]));
    }
  }
}

// order[position] = entry, place[entry] = position, and the table of tiles {expert, first, count};
// tiles that are not needed have count 0. One block of 1024 threads; a warp counts an expert.
KERNEL(1024) sort_entries(u32 *order, u32 *place, u32 *table, const u32 *experts, u32 entries,
                          u32 num_experts, u32 tile, u32 max_tiles) {
  begin_launch();
  SHARED u32 counts[1024];
  SHARED u32 starts[1024];
  u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  for (u32 expert = warp; expert < num_experts; expert += 32) {
    u32 count = 0;
    for (u32 first = 0; first < entries; first += WARP) {
      bool mine = first + lane < entries && experts[first + lane] == expert;
      count += __popc(__ballot_sync(FULL_WARP, mine));
    }
    if (lane == 0) counts[expert] = count;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    u32 start = 0, tiles = 0;
    for (u32 expert = 0; expert < num_experts; expert++) {
      starts[expert] = start;
      for (u32 done = 0; done < counts[expert]; done += tile, tiles++) {
        table[tiles * 3] = expert;
        table[tiles * 3 + 1] = start + done;
        table[tiles * 3 + 2] = min(tile, counts[expert] - done);
      }
      start += counts[expert];
    }
    for (; tiles < max_tiles; tiles++)
      table[tiles * 3] = table[tiles * 3 + 1] = table[tiles * 3 + 2] = 0;
  }
  __syncthreads();
  for (u32 expert = warp; expert < num_experts; expert += 32) {
    u32 position = starts[expert];
    for (u32 first = 0; first < entries; first += WARP) {
      bool mine = first + lane < entries && experts[first + lane] == expert;
      u32 votes = __ballot_sync(FULL_WARP, mine);
      u32 at = position + __popc(votes & ((1u << lane) - 1));
      if (mine) order[at] = first + lane, place[first + lane] = at;
      position += __popc(votes);
    }
  }
}

// sorted[position] = weight * x[row] of the entry there. One block an entry.
KERNEL(256) gather_scaled(float *sorted, const float *x, const u32 *order, const float *weights,
                          u32 top_k, u32 cols) {
  begin_launch();
  u32 entry = order[blockIdx.x];
  float weight = weights[entry];
  const float *from = x + (u64)(entry / top_k) * cols;
  float *to = sorted + (u64)blockIdx.x * cols;
  for (u32 i = threadIdx.x; i < cols; i += 256) to[i] = weight * from[i];
}

// out[row] += the rows of its entries, in the order of choice. One block a row.
KERNEL(256) scatter_add(float *out, const float *sorted, const u32 *place, u32 top_k, u32 cols) {
  begin_launch();
  float *row = out + (u64)blockIdx.x * cols;
  for (u32 i = threadIdx.x; i < cols; i += 256) {
    float sum = row[i];
    for (u32 j = 0; j < top_k; j++)
      sum += sorted[(u64)place[blockIdx.x * top_k + j] * cols + i];
    row[i] = sum;
  }
}
