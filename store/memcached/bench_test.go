package memcached_test

import (
	"context"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/memcached"
)

// BenchmarkStore measures calls on records of 10 fields of 100 bytes, one at a time and 16 at a time, beside a bare
// gomemcache client that gets and compares-and-swaps values of the same size. A write is measured with the load before
// it, as the Manager does it. server-µs/op is the CPU time of the memcached servers.
func BenchmarkStore(b *testing.B) {
	var srvs []*testserver.Server
	var addrs []string
	for range 2 {
		srv := testserver.Memcached(b)
		srvs, addrs = append(srvs, srv), append(addrs, srv.Addr)
	}
	url := "memcached://" + strings.Join(addrs, ",")
	one := mustOpen(b, "memcached://"+addrs[0])
	two := mustOpen(b, url+"?copies=2&prefix=two:")
	bare := memcache.New(addrs[0])
	bare.MaxIdleConns, bare.Timeout = 64, 3*time.Second
	defer bare.Close()
	rec := tenFields(1000)
	const n = 1000
	value, err := memcached.EncodeValue(rec)
	if err != nil {
		b.Fatal(err)
	}
	for i := range n {
		mustSave(b, one, idOf(i), rec, 0)
		mustSave(b, two, idOf(i), rec, 0)
		if err := bare.Set(&memcache.Item{Key: "bare:" + idOf(i).Hex(), Value: value, Expiration: 3600}); err != nil {
			b.Fatal(err)
		}
	}
	load := func(s *memcached.Store) func(context.Context, int) error {
		return func(ctx context.Context, i int) error { _, err := s.Load(ctx, idOf(i)); return err }
	}
	save := func(s *memcached.Store) func(context.Context, int) error {
		return func(ctx context.Context, i int) error {
			r, err := s.Load(ctx, idOf(i))
			if err == nil {
				next := after(r, set("field3", "new"))
				next.Tag = r.Tag
				err = s.Save(ctx, idOf(i), next, r.Revision)
			}
			return err
		}
	}
	calls := []struct {
		name string
		call func(ctx context.Context, i int) error
	}{
		{"gomemcache get", func(_ context.Context, i int) error { _, err := bare.Get("bare:" + idOf(i).Hex()); return err }},
		{"load", load(one)},
		{"load, copies=2", load(two)},
		{"gomemcache get+cas", func(_ context.Context, i int) error {
			it, err := bare.Get("bare:" + idOf(i).Hex())
			if err == nil {
				it.Expiration = 3600
				err = bare.CompareAndSwap(it)
			}
			return err
		}},
		{"load+save", save(one)},
		{"load+save, copies=2", save(two)},
	}
	for _, c := range calls {
		for _, inFlight := range []int{1, 16} {
			b.Run(c.name+"/"+strconv.Itoa(inFlight), func(b *testing.B) {
				b.ReportAllocs()
				var next atomic.Int64
				b.SetParallelism(max(1, inFlight/2))
				run := func(more func() bool) {
					for more() {
						ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
						// Records come around after a thousand calls, so that nothing conflicts by accident.
						if err := c.call(ctx, int(next.Add(1)%n)); err != nil {
							b.Error(err)
						}
						cancel()
					}
				}
				before := serverCPU(b, srvs)
				if inFlight == 1 {
					run(b.Loop)
				} else {
					b.RunParallel(func(pb *testing.PB) { run(pb.Next) })
				}
				b.ReportMetric((serverCPU(b, srvs)-before)*1e6/float64(b.N), "server-µs/op")
			})
		}
	}
}

// BenchmarkMemory reports what a session of 10 fields, and one that was ended, cost the server.
func BenchmarkMemory(b *testing.B) {
	for _, size := range []int{-1, 0, 200, 1000, 4000, 64000} {
		name := strconv.Itoa(size)
		if size < 0 {
			name = "ended"
		}
		b.Run(name, func(b *testing.B) {
			srv := testserver.Memcached(b, testserver.MemcachedOptions{Args: []string{"-m", "1024"}})
			s, a := mustOpen(b, "memcached://"+srv.Addr), admin{b, srv.Addr}
			rec := tenFields(max(size, 0))
			before := pages(a)
			n := 0
			for b.Loop() {
				if size < 0 {
					mustDelete(b, s, idOf(n))
				} else {
					mustSave(b, s, idOf(n), rec, 0)
				}
				n++
			}
			if got := number(b, a.stats(), "evictions"); got > 0 {
				b.Errorf("%d evictions", got)
			}
			b.ReportMetric(float64(rec.EncodedLen()), "bytes/record")
			b.ReportMetric(float64(pages(a)-before)/float64(n), "bytes/session")
		})
	}
}

// pages returns how much memory the server has given to items, whole pages of a megabyte.
func pages(a admin) int { return number(a.t, a.statsOf(" slabs"), "total_malloced") }

// tenFields returns a record with values of size bytes altogether, and no fields for 0.
func tenFields(size int) driver.Record {
	rec := record("ada")
	for i := range 10 {
		if size > 0 {
			rec.Fields = rec.Fields.With(set("field"+strconv.Itoa(i), strings.Repeat("x", size/10)))
		}
	}
	return rec
}

func serverCPU(t testing.TB, srvs []*testserver.Server) (seconds float64) {
	for _, srv := range srvs {
		info := admin{t, srv.Addr}.stats()
		for _, name := range []string{"rusage_user", "rusage_system"} {
			n, err := strconv.ParseFloat(info[name], 64)
			if err != nil {
				t.Fatal(err)
			}
			seconds += n
		}
	}
	return seconds
}
