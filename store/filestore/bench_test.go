//go:build unix

package filestore_test

import (
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
)

// The benchmarks use the directory in HOLDFAST_BENCH_DIR, by default one in memory: a disk's own speed hides the
// rest. "a file" is the bare open, read and close of a file of the same size, by package os.
func benchStore(b *testing.B, c filestore.Config) (s *filestore.Store, dir string) {
	dir = fastDir(b)
	if parent := os.Getenv("HOLDFAST_BENCH_DIR"); parent != "" {
		dir = filepath.Join(parent, "filestore-bench")
		b.Cleanup(func() { os.RemoveAll(dir) })
	}
	c.SweepEvery = -1
	return mustOpen(b, dir, c), dir
}

func sized(bytes int) driver.Record {
	rec := newRecord("", time.Hour)
	rec.Fields = rec.Fields.With(driver.Change{Name: "value", Value: make([]byte, bytes)})
	return rec
}

func BenchmarkLoad(b *testing.B) {
	for _, size := range []int{200, 4 << 10, 64 << 10, 1 << 20} {
		s, dir := benchStore(b, filestore.Config{})
		id := mustID(b)
		mustSave(b, s, id, sized(size), 0)
		b.Run(fmt.Sprint("record/", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Load(b.Context(), id); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprint("a file/", size), func(b *testing.B) {
			b.ReportAllocs()
			path := filepath.Join(dir, id.Hex(), "data")
			for b.Loop() {
				if _, err := os.ReadFile(path); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	s, _ := benchStore(b, filestore.Config{})
	b.Run("absent", func(b *testing.B) {
		b.ReportAllocs()
		id := mustID(b)
		for b.Loop() {
			if _, err := s.Load(b.Context(), id); err == nil {
				b.Fatal("found")
			}
		}
	})
}

func BenchmarkSave(b *testing.B) {
	for _, size := range []int{200, 4 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprint("record/", size), func(b *testing.B) {
			benchSave(b, size, filestore.Config{})
		})
		b.Run(fmt.Sprint("a file/", size), func(b *testing.B) {
			b.ReportAllocs()
			path := filepath.Join(fastDir(b), "file")
			content := make([]byte, size)
			for b.Loop() {
				must(b, os.WriteFile(path+".tmp", content, 0o600))
				must(b, os.Rename(path+".tmp", path))
			}
		})
	}
	b.Run("sync=data/200", func(b *testing.B) { benchSave(b, 200, filestore.Config{SyncData: true}) })
}

func benchSave(b *testing.B, size int, c filestore.Config) {
	s, _ := benchStore(b, c)
	id, rec := mustID(b), sized(size)
	mustSave(b, s, id, rec, 0)
	b.ReportAllocs()
	for b.Loop() {
		prev := rec.Revision
		rec.Revision = driver.NewRevision(prev)
		if err := s.Save(b.Context(), id, rec, prev); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkConflict(b *testing.B) {
	s, _ := benchStore(b, filestore.Config{})
	id, rec := mustID(b), sized(200)
	mustSave(b, s, id, rec, 0)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Save(b.Context(), id, rec, rec.Revision+1); err == nil {
			b.Fatal("saved")
		}
	}
}

func BenchmarkCreateDelete(b *testing.B) {
	s, _ := benchStore(b, filestore.Config{})
	rec := sized(200)
	b.ReportAllocs()
	for b.Loop() {
		id := mustID(b)
		mustSave(b, s, id, rec, 0)
		must(b, s.Delete(b.Context(), id))
	}
}

func BenchmarkSweep(b *testing.B) {
	s, _ := benchStore(b, filestore.Config{})
	rec := sized(200)
	for range 1000 {
		mustSave(b, s, mustID(b), rec, 0)
	}
	for b.Loop() {
		if _, err := s.SweepOnce(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(1000*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkMillion measures calls on a store that holds HOLDFAST_BENCH_RECORDS records (10 000) besides, in each layout.
// The records are made first, which takes minutes for a million.
func BenchmarkMillion(b *testing.B) {
	n := 10_000
	if text := os.Getenv("HOLDFAST_BENCH_RECORDS"); text != "" {
		var err error
		n, err = strconv.Atoi(text)
		must(b, err)
	}
	for _, l := range []filestore.Layout{filestore.Flat, filestore.Hashed} {
		b.Run(string(l), func(b *testing.B) {
			s, _ := benchStore(b, filestore.Config{Layout: l})
			rec := sized(200)
			ids := make([]driver.ID, n)
			start := time.Now()
			for i := range ids {
				ids[i] = mustID(b)
				mustSave(b, s, ids[i], rec, 0)
			}
			b.Logf("%d records made, %v each", n, time.Since(start)/time.Duration(n))
			start = time.Now()
			st, err := s.Stat(b.Context())
			must(b, err)
			b.Logf("Stat: %d records, %v each", st.Records, time.Since(start)/time.Duration(n))
			b.Run("Load", func(b *testing.B) {
				for b.Loop() {
					if _, err := s.Load(b.Context(), ids[mathrand.IntN(n)]); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("Load absent", func(b *testing.B) {
				for b.Loop() {
					if _, err := s.Load(b.Context(), mustID(b)); !errors.Is(err, driver.ErrNotFound) {
						b.Fatal(err)
					}
				}
			})
			b.Run("Save", func(b *testing.B) {
				for b.Loop() {
					id := ids[mathrand.IntN(n)]
					rec, err := s.Load(b.Context(), id)
					must(b, err)
					mustSave(b, s, id, next(rec, "2"), rec.Revision)
				}
			})
			b.Run("create and Delete, in parallel", func(b *testing.B) {
				b.SetParallelism(2)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						id := mustID(b)
						mustSave(b, s, id, rec, 0)
						must(b, s.Delete(b.Context(), id))
					}
				})
			})
		})
	}
}
