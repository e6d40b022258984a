package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// connections of clients, each with one request at a time.
const connections = 32

// TestCost prints the CPU that a proxy spends on a request, in user and kernel mode, over all of its processes, which
// are pinned to one core; clients and applications have the others.
func TestCost(t *testing.T) {
	apps := []*testserver.Server{mustApp(t, "a"), mustApp(t, "b")}
	var running []*testserver.Server
	for _, p := range proxies {
		s := p.start(t, apps, false)
		mustPin(t, s.PID(), 0)
		running = append(running, s)
	}
	for _, a := range apps {
		mustPin(t, a.PID(), 1)
	}
	mustPin(t, os.Getpid(), 1)

	for _, size := range []int{1 << 10, 1 << 20} {
		costs := make([][]float64, len(proxies)) // µs a request, by proxy and round
		for range *rounds {
			for i, s := range running {
				costs[i] = append(costs[i], mustCost(t, s, size))
			}
		}
		var b strings.Builder
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		fmt.Fprintf(w, "%d KB\tµs CPU a request\tof bare\tof Caddy\tof nginx\n", size>>10)
		for i, p := range proxies {
			ratio := func(to string) float64 {
				j := slices.IndexFunc(proxies, func(p proxy) bool { return p.name == to })
				var r []float64
				for k := range costs[i] {
					r = append(r, costs[i][k]/costs[j][k])
				}
				return median(r)
			}
			fmt.Fprintf(w, "%s\t%.1f\t%.2f\t%.2f\t%.2f\n", p.name, median(costs[i]), ratio("bare ReverseProxy"), ratio("Caddy"), ratio("nginx"))
		}
		_ = w.Flush() // to a Builder
		t.Log("\n" + b.String())
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// mustCost sends requests for the length of a sample and returns the CPU that each took, in µs.
func mustCost(t testing.TB, s *testserver.Server, size int) float64 {
	t.Helper()
	var n, failed atomic.Int64
	var stop atomic.Bool
	var clients sync.WaitGroup
	for range connections {
		clients.Go(func() {
			if err := get(s.Addr, size, func() bool { n.Add(1); return !stop.Load() }); err != nil && failed.Add(1) == 1 {
				t.Errorf("%s: %v", s.Addr, err)
			}
		})
	}
	time.Sleep(*sample / 5) // until connections are there
	before, first := mustCPU(t, s.PID()), n.Load()
	time.Sleep(*sample)
	cpu, requests := mustCPU(t, s.PID())-before, n.Load()-first
	stop.Store(true)
	clients.Wait()
	if requests == 0 {
		t.Fatalf("%s answered nothing", s.Addr)
	}
	return float64(cpu.Microseconds()) / float64(requests)
}

// get sends a browser's request over one connection again and again.
func get(addr string, size int, more func() bool) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	request := "GET /" + strconv.Itoa(size) + " HTTP/1.1\r\nHost: " + addr + "\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\n" +
		"Accept-Encoding: gzip, deflate, br\r\nCookie: session=3q2-7wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA; theme=dark\r\n\r\n"
	r := bufio.NewReaderSize(conn, 64<<10)
	for {
		if _, err := io.WriteString(conn, request); err != nil {
			return err
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		if read, err := io.Copy(io.Discard, res.Body); err != nil || read != int64(size) || res.StatusCode != 200 {
			return fmt.Errorf("status %d with %d bytes, want %d: %v", res.StatusCode, read, size, err)
		}
		if !more() {
			return nil
		}
	}
}

// processes returns pid and those that it has started.
func processes(pid int) []int {
	all := []int{pid}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for i := 0; i < len(all); i++ {
		for _, stat := range stats {
			b, err := os.ReadFile(stat)
			if err != nil {
				continue // it ended
			}
			_, rest, _ := strings.Cut(string(b), ") ")
			if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(all[i]) {
				if child, err := strconv.Atoi(filepath.Base(filepath.Dir(stat))); err == nil {
					all = append(all, child)
				}
			}
		}
	}
	return all
}

func threads(pid int) []int {
	var all []int
	for _, p := range processes(pid) {
		dirs, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", p))
		for _, d := range dirs {
			if id, err := strconv.Atoi(filepath.Base(d)); err == nil {
				all = append(all, id)
			}
		}
	}
	return all
}

func mustPin(t testing.TB, pid, core int) {
	t.Helper()
	var set unix.CPUSet
	set.Set(core)
	for _, thread := range threads(pid) {
		if err := unix.SchedSetaffinity(thread, &set); err != nil && err != unix.ESRCH && err != unix.EINVAL { // one core only
			t.Fatal(err)
		}
	}
}

// mustCPU returns what the threads of a process and of its children have run for (proc(5), schedstat).
func mustCPU(t testing.TB, pid int) time.Duration {
	t.Helper()
	var sum time.Duration
	for _, thread := range threads(pid) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", thread))
		if err != nil {
			t.Fatal(err)
		}
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}
