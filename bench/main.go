// Bench compares Holdfast with other session libraries, side by side in one run, and prints tables for
// docs/BENCHMARKS.md: what a request costs over memory, Redis, MariaDB and PostgreSQL, how a session that many requests use at once
// behaves, and what is lost when requests overlap.
//
//	go run . [-all] [-stores memory,redis,mysql,postgres] [-requests read,write] [-sealed] [-sample 20ms] [-rounds 7] [-update FILE]
//
// Only ratios are worth anything. Every library answers the same requests in turn, round by round, and what is
// printed is the median round. For profiles use go test -bench.
package main

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"
)

func main() {
	var e effort
	all := flag.Bool("all", false, "measure every combination of size and number of fields (minutes)")
	sealed := flag.Bool("sealed", false, "measure sessions in cookies also if only some requests are measured, or no store (-stores '')")
	stores := flag.String("stores", strings.Join(allStores, ","), "where sessions are kept")
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
	err := run(io.MultiWriter(os.Stdout, &tables), *all, *sealed, strings.Split(*stores, ","), e)
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

func run(out io.Writer, all, sealed bool, stores []string, e effort) error {
	fmt.Fprintf(out, "%s, %s, %s/%s, %d cores, %d rounds of %v\n", time.Now().Format(time.DateOnly), runtime.Version(),
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), e.rounds, e.sample)
	var places []server
	for _, kind := range stores {
		if kind == "" {
			continue
		}
		if kind == "memory" {
			places = append(places, server{})
			continue
		}
		at, stop, err := startServer(kind)
		if err != nil {
			fmt.Fprintf(out, "\n%v\n", err)
			continue
		}
		defer stop()
		places = append(places, at)
	}
	var bars []bar
	for _, at := range places {
		for _, sh := range shapes(all) {
			var t table
			switch {
			case at.kind == "":
				t = measureMemory(sh, e)
			case sh == large && !all:
				continue // the network of loopback is all that it shows
			default:
				var err error
				if t, err = measureServer(sh, at, e); err != nil {
					return err
				}
			}
			t.print(out)
			if sh == small {
				bars = append(bars, t.bars()...)
			}
		}
	}
	longer := effort{e.rounds, 10 * e.sample, e.requests} // for a p99 that is one
	for _, at := range places {
		if store := cmp.Or(at.kind, "memory"); e.wants(opMix) {
			printParallel(out, "One session that 16 requests use at a time, every tenth writing: "+titles[store],
				compare(able(store, opMix), load{operation: opMix, shape: small, server: at, sessions: 1, atATime: 16}, longer))
		}
	}
	if sealed || len(e.requests) == 0 {
		more, err := printSealed(out, e)
		if err != nil {
			return err
		}
		bars = append(bars, more...)
	}
	if len(e.requests) == 0 && len(places) > 0 {
		if err := printHarm(out, places); err != nil {
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
