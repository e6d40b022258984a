package testsql

import (
	"context"
	"crypto/rand"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
)

// TenFields returns a record of ten fields with so many bytes altogether.
func TenFields(size int) driver.Record {
	rec := Record("ada")
	for i := range 10 {
		rec.Fields = rec.Fields.With(Set("field"+strconv.Itoa(i), strings.Repeat("x", size/10)))
	}
	return rec
}

// Bench measures calls on a thousand records of 10 fields of 100 bytes, one at a time and 16 at a time. A write is
// measured with the load before it, as the Manager does it.
func Bench(b *testing.B, s driver.Store) {
	rec := TenFields(1000)
	const n = 1000
	for i := range n {
		if err := s.Delete(b.Context(), ID(i)); err != nil {
			b.Fatal(err)
		}
		MustSave(b, s, ID(i), rec, 0)
	}
	calls := []struct {
		name  string
		write func(ctx context.Context, id driver.ID, r driver.Record) error
	}{
		{"load", func(context.Context, driver.ID, driver.Record) error { return nil }},
		{"load+save", func(ctx context.Context, id driver.ID, r driver.Record) error {
			return s.Save(ctx, id, After(r, Set("field3", "new")), r.Revision)
		}},
		{"load+touch", func(ctx context.Context, id driver.ID, r driver.Record) error {
			return s.(driver.Toucher).Touch(ctx, id, After(r), r.Revision)
		}},
	}
	for _, c := range calls {
		for _, inFlight := range []int{1, 16} {
			b.Run(c.name+"/"+strconv.Itoa(inFlight), func(b *testing.B) {
				b.ReportAllocs()
				var next atomic.Int64
				b.SetParallelism(max(1, inFlight/2)) // of two processors
				run := func(more func() bool) {
					for more() {
						ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
						id := ID(int(next.Add(1) % n))
						r, err := s.Load(ctx, id)
						if err == nil {
							err = c.write(ctx, id, r)
						}
						if err != nil {
							b.Error(err)
						}
						cancel()
					}
				}
				if inFlight == 1 {
					run(b.Loop)
				} else {
					b.RunParallel(func(pb *testing.PB) { run(pb.Next) })
				}
			})
		}
	}
}

// BenchSize reports what a session of 10 fields takes in the table with its indexes, in a store that has no other.
// Analyze has the database count.
func BenchSize(b *testing.B, open func(b *testing.B, size int) *sqlstore.Store, analyze func()) {
	for _, size := range []int{200, 1000, 4000, 64000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			s := open(b, size)
			rec := TenFields(size)
			n := 0
			for b.Loop() {
				var id driver.ID
				_, _ = rand.Read(id[:]) // never fails
				for i := range 10 {     // nothing to compress, as if encrypted
					value := make([]byte, size/10)
					_, _ = rand.Read(value)
					rec.Fields = rec.Fields.With(Set("field"+strconv.Itoa(i), string(value)))
				}
				MustSave(b, s, id, rec, 0)
				n++
			}
			analyze()
			st, err := s.Stat(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(rec.EncodedLen()), "bytes/record")
			b.ReportMetric(float64(st.Bytes)/float64(n), "bytes/session")
		})
	}
}
