// Command bench measures extentd beside its peers: nginx, qemu-img, qemu-io,
// qemu-nbd and nbdkit with nbdcopy and fio. It builds extentd from this tree, makes
// its own data, runs the two sides of each work in turn, and prints one table of
// ratios. Absolute numbers are the machine's; ratios of one run are what lasts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	only := flag.String("only", "", "run only the works whose name contains this")
	scale := flag.String("scale", "full", "full or small: how much data")
	rounds := flag.Int("rounds", 5, "how often each side runs; medians are taken")
	dir := flag.String("dir", "", "where to make the data; the default is the temporary directory")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, *only, *scale, *dir, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func bench(ctx context.Context, only, scale, dir string, rounds int) error {
	if scale != "full" && scale != "small" || rounds < 1 || flag.NArg() > 0 {
		return fmt.Errorf("usage: go run ./bench [-only name] [-scale full|small] [-rounds n] [-dir path]")
	}
	if err := findPeers(); err != nil {
		return err
	}
	s, err := newSetup(ctx, dir, scale == "small", rounds)
	if err != nil {
		return err
	}
	defer s.close()
	fmt.Println(machine(ctx))
	var results table
	defer func() { // what there is, if a work fails
		fmt.Println()
		results.print(os.Stdout)
	}()
	for _, w := range works() {
		if !strings.Contains(w.name, only) {
			continue
		}
		if err := w.run(ctx, s, &results); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", w.name, err), s.logs())
		}
	}
	return nil
}
