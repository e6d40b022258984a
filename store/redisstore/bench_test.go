package redisstore_test

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
)

// BenchmarkStore measures calls on records of 10 fields of 100 bytes, one at a time and 16 at a time. A write is
// measured with the load before it, as the Manager does it; "mix" is ten loads and one merge. server-µs/op is the CPU time
// of redis-server.
func BenchmarkStore(b *testing.B) {
	srv := testserver.Redis(b)
	s, admin := mustOpen(b, "redis://"+srv.Addr), mustAdmin(b, srv)
	cached := mustOpen(b, "redis://"+srv.Addr+"?cache=64MB")
	rec := tenFields(1000)
	const n = 1000
	for i := range n {
		mustSave(b, s, idOf(i), rec, 0)
	}
	load := func(ctx context.Context, i int) (driver.Record, error) { return s.Load(ctx, idOf(i)) }
	calls := []call{
		{"load", func(ctx context.Context, i int) error { _, err := load(ctx, i); return err }},
		{"load+save", func(ctx context.Context, i int) error {
			r, err := load(ctx, i)
			if err == nil {
				err = s.Save(ctx, idOf(i), after(r, set("field3", "new")), r.Revision)
			}
			return err
		}},
		{"load+merge", func(ctx context.Context, i int) error {
			r, err := load(ctx, i)
			if err == nil {
				changes := []driver.Change{set("field3", "new")}
				_, err = s.Merge(ctx, idOf(i), r, after(r, changes...), changes)
			}
			return err
		}},
		{"load+raced merge", func(ctx context.Context, i int) error {
			r, err := load(ctx, i)
			if err == nil {
				changes := []driver.Change{set("field3", "new")}
				next := after(r, changes...)
				r.Revision--
				_, err = s.Merge(ctx, idOf(i), r, next, changes)
			}
			return err
		}},
		{"load+touch", func(ctx context.Context, i int) error {
			r, err := load(ctx, i)
			if err == nil {
				err = s.Touch(ctx, idOf(i), after(r), r.Revision)
			}
			return err
		}},
	}
	for name, s := range map[string]*redisstore.Store{"": s, ", cached": cached} {
		merge := func(ctx context.Context, i int) error {
			r, err := s.Load(ctx, idOf(i))
			if err == nil {
				changes := []driver.Change{set("field3", "new")}
				_, err = s.Merge(ctx, idOf(i), r, after(r, changes...), changes)
			}
			return err
		}
		load := func(ctx context.Context, i int) error { _, err := s.Load(ctx, idOf(i)); return err }
		var visits atomic.Int64
		mix := func(ctx context.Context, i int) error {
			if visits.Add(1)%11 == 0 {
				return merge(ctx, i)
			}
			return load(ctx, i)
		}
		calls = append(calls, call{"mix" + name, mix})
		if s == cached {
			calls = append(calls, call{"load" + name, load})
		}
	}
	slices.SortStableFunc(calls, func(a, b call) int { return cmp.Compare(a.name, b.name) })
	bench(b, calls, n, admin)
}

// BenchmarkWait measures writes that a replica confirms, beside those that none does.
func BenchmarkWait(b *testing.B) {
	srv := testserver.Redis(b, testserver.RedisOptions{Config: []string{"repl-diskless-sync-delay 0"}})
	testserver.RedisReplica(b, srv)
	admin := mustAdmin(b, srv)
	const n = 1000
	var calls []call
	for _, options := range []string{"", "?wait=1"} {
		s := mustOpen(b, "redis://"+srv.Addr+options)
		for i := range n {
			_ = s.Delete(b.Context(), idOf(i)) // the save says what is wrong
			mustSave(b, s, idOf(i), tenFields(1000), 0)
		}
		calls = append(calls, call{"load+save" + options, func(ctx context.Context, i int) error {
			r, err := s.Load(ctx, idOf(i))
			if err == nil {
				err = s.Save(ctx, idOf(i), after(r, set("field3", "new")), r.Revision)
			}
			return err
		}})
	}
	bench(b, calls, n, admin)
}

type call struct {
	name string
	call func(ctx context.Context, i int) error
}

// bench measures calls on n records.
func bench(b *testing.B, calls []call, n int64, admin rueidis.Client) {
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
				before := serverCPU(b, admin)
				if inFlight == 1 {
					run(b.Loop)
				} else {
					b.RunParallel(func(pb *testing.PB) { run(pb.Next) })
				}
				b.ReportMetric((serverCPU(b, admin)-before)*1e6/float64(b.N), "server-µs/op")
			})
		}
	}
}

// BenchmarkMemory reports what a session of 10 fields costs the server.
func BenchmarkMemory(b *testing.B) {
	for _, size := range []int{0, 200, 1000, 4000, 64000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			srv := testserver.Redis(b)
			s, admin := mustOpen(b, "redis://"+srv.Addr), mustAdmin(b, srv)
			rec := tenFields(size)
			before := infoNumber(b, admin, "memory", "used_memory")
			n := 0
			for b.Loop() {
				mustSave(b, s, idOf(n), rec, 0)
				n++
			}
			b.ReportMetric(float64(rec.EncodedLen()), "bytes/record")
			b.ReportMetric((infoNumber(b, admin, "memory", "used_memory")-before)/float64(n), "bytes/session")
		})
	}
}

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

func serverCPU(t testing.TB, admin rueidis.Client) (seconds float64) {
	return infoNumber(t, admin, "cpu", "used_cpu_user") + infoNumber(t, admin, "cpu", "used_cpu_sys")
}
