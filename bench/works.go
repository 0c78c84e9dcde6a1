package main

import "context"

// A work is one thing that both sides do.
type work struct {
	name string
	run  func(ctx context.Context, s *setup, results *table) error
}

func works() []work {
	return []work{
		{"read-raw", readRaw},
		{"read-qcow2", readQCOW2},
		{"ranges", randomRanges},
		{"filters", filteredRanges},
		{"map", wholeMap},
		{"pages", mapPages},
		{"zlib", func(ctx context.Context, s *setup, results *table) error { return readPacked(ctx, s, results, "zlib") }},
		{"zstd", func(ctx context.Context, s *setup, results *table) error { return readPacked(ctx, s, results, "zstd") }},
		{"cold", coldRange},
		{"write", writeSequentially},
		{"overwrite", overwrite},
		{"allocate", allocate},
		{"clear", clearWhole},
		{"changes", changedBlocks},
		{"check", checkWhole},
		{"nbd-read", nbdReads},
		{"nbd-overwrite", nbdOverwrites},
		{"nbd-allocate", nbdAllocations},
		{"nbd-copy", nbdCopies},
		{"nbd-map", nbdMap},
		{"copy-local", copyLocally},
		{"copy-http", copyRemotely},
		{"imageio", besideImageio},
	}
}

// compare races extentd with a peer in seconds, and puts in the result.
func (s *setup) compare(ctx context.Context, results *table, work string, goal float64, ours, peer side) error {
	v, err := s.race(ctx, work, ours, peer)
	if err != nil {
		return err
	}
	results.add(work, seconds(v[0]), peer.name+" "+seconds(v[1]), v[1]/v[0], goal)
	return nil
}
