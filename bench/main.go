// Bench compares Holdfast with other session libraries, side by side in one run, and prints tables for
// docs/BENCHMARKS.md: what a request costs over memory and over Redis, how a session that many requests use at once
// behaves, and what is lost when requests overlap.
//
//	go run . [-all] [-stores memory,redis] [-requests read,write] [-sample 20ms] [-rounds 7] [-update FILE]
//
// Only ratios are worth anything. Every library answers the same requests in turn, round by round, and what is
// printed is the median round. For profiles use go test -bench.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

func main() {
	var e effort
	all := flag.Bool("all", false, "measure every combination of size and number of fields (minutes)")
	stores := flag.String("stores", "memory,redis", "where sessions are kept")
	document := flag.String("update", "", "a Markdown file to put the tables into, such as ../docs/BENCHMARKS.md")
	flag.DurationVar(&e.sample, "sample", 20*time.Millisecond, "how long one sample takes")
	flag.IntVar(&e.rounds, "rounds", 7, "how many samples of each row")
	flag.Func("requests", "which kinds of requests, such as \"read,touch due\" (default: all)", e.choose)
	flag.Parse()
	if flag.NArg() > 0 || e.rounds < 1 || e.sample <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	var tables bytes.Buffer
	err := run(io.MultiWriter(os.Stdout, &tables), *all, strings.Split(*stores, ","), e)
	if err == nil && *document != "" {
		err = update(*document, tables.String())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// update puts the tables into a document, between two lines that mark the place.
func update(file, tables string) error {
	const begin, end = "<!-- tables -->\n", "<!-- end of tables -->\n"
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(b), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q to put the tables between", file, begin, end)
	}
	return os.WriteFile(file, []byte(before+begin+"\n"+tables+"\n"+end+after), 0o644)
}

var (
	small  = shape{240, 10}
	medium = shape{4 << 10, 10}
	large  = shape{64 << 10, 100}
)

// shapes are those that are measured: a line through the cube of sizes and numbers of fields, or all of it.
func shapes(all bool) []shape {
	if !all {
		return []shape{small, medium, large}
	}
	var s []shape
	for _, size := range []int{240, 4 << 10, 64 << 10} {
		for _, fields := range []int{1, 10, 100} {
			s = append(s, shape{size, fields})
		}
	}
	return s
}

func run(out io.Writer, all bool, stores []string, e effort) error {
	fmt.Fprintf(out, "%s, %s, %s/%s, %d cores, %d rounds of %v\n", time.Now().Format(time.DateOnly), runtime.Version(),
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), e.rounds, e.sample)
	redis := ""
	if slices.Contains(stores, "redis") {
		addr, stop, err := startRedis()
		if err != nil {
			fmt.Fprintf(out, "\n%v\n", err)
		} else {
			defer stop()
			redis = addr
		}
	}
	var bars []bar
	if slices.Contains(stores, "memory") {
		for _, sh := range shapes(all) {
			t := measureMemory(sh, e)
			t.print(out)
			if sh == small {
				bars = append(bars, t.bars()...)
			}
		}
	}
	if redis != "" {
		for _, sh := range shapes(all) {
			if sh == large && !all {
				continue // the network of loopback is all that it shows
			}
			t, err := measureRedis(sh, redis, e)
			if err != nil {
				return err
			}
			t.print(out)
			if sh == small {
				bars = append(bars, t.bars()...)
			}
		}
	}
	longer := effort{e.rounds, 10 * e.sample, e.requests} // for a p99 that is one
	if slices.Contains(stores, "memory") && e.wants(opMix) {
		printParallel(out, "One session that 16 requests use at a time, every tenth writing, in memory",
			compare(able("memory", opMix), load{operation: opMix, shape: small, sessions: 1, atATime: 16}, longer))
	}
	if redis != "" && e.wants(opMix) {
		printParallel(out, "The same over Redis",
			compare(able("redis", opMix), load{operation: opMix, shape: small, redis: redis, sessions: 1, atATime: 16}, longer))
	}
	if len(e.requests) == 0 {
		if err := printHarm(out, stores, redis); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "\n### Bars")
	fmt.Fprintln(out)
	for _, b := range bars {
		fmt.Fprintln(out, "-", b)
	}
	return nil
}
