//go:build unix

package filestore_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
)

func TestParseURL(t *testing.T) {
	tests := []struct {
		url  string
		path string
		want filestore.Config
	}{
		{"file:///var/lib/sessions", "/var/lib/sessions", filestore.Config{}},
		{"file:/var/lib/sessions", "/var/lib/sessions", filestore.Config{}},
		{"file:sessions", "sessions", filestore.Config{}},
		{"file:./a/../b%20c", "./a/../b c", filestore.Config{}},
		{"file:///a%23b?sync=none", "/a#b", filestore.Config{}},
		{"file:s?sync=data&sweep=30s", "s", filestore.Config{SyncData: true, SweepEvery: 30 * time.Second}},
		{"file:s?network=unsafe", "s", filestore.Config{Network: filestore.Unsafe}},
		{"file:s?network=nfs", "s", filestore.Config{Network: filestore.NFS}},
		{"file:s?layout=hashed", "s", filestore.Config{Layout: filestore.Hashed}},
		{"file:s?layout=flat", "s", filestore.Config{Layout: filestore.Flat}},
		{"file:s?network=refuse", "s", filestore.Config{}},
		{"file:s?sweep=never", "s", filestore.Config{SweepEvery: -1}},
	}
	for _, tt := range tests {
		path, c, err := filestore.ParseURL(tt.url)
		if err != nil || path != tt.path {
			t.Errorf("ParseURL(%s) = %q, %v, want %q", tt.url, path, err, tt.path)
		}
		if diff := cmp.Diff(tt.want, c); diff != "" {
			t.Errorf("ParseURL(%s) (-want +got):\n%s", tt.url, diff)
		}
	}
}

func TestParseURLErrors(t *testing.T) {
	tests := []struct{ url, want string }{
		{"file:s?snyc=data", `option "snyc" unknown, did you mean "sync"?`},
		{"file:s?sweeps=1s", `option "sweeps" unknown, did you mean "sweep"?`},
		{"file:s?sync=full", `option sync: "full" is neither none nor data`},
		{"file:s?sync=", `option sync: "" is neither none nor data`},
		{"file:s?sweep=60", `option sweep: "60" is neither a time such as 1m or 30s nor never`},
		{"file:s?sweep=-1s", `option sweep: "-1s" is neither`},
		{"file:s?layout=deep", `option layout: "deep" is neither flat nor hashed`},
		{"file:s?layuot=flat", `option "layuot" unknown, did you mean "layout"?`},
		{"file:s?network=safe", `option network: "safe" is none of refuse, nfs and unsafe`},
		{"file:s?sync=data&sync=none", "option sync is given 2 times"},
		{"file:", "no directory in it"},
		{"file:///s%00x", "no directory in it"},
		{"file://var/lib", "write file:///var/lib for an absolute path or file:var/lib for a relative one"},
		{"file:s#x", "is not part of the path"},
		{"files:s", `scheme "files", want file`},
		{"file:s?sync=a&sweep=b", "option sync"},
		{"file:s?sync=a&sweep=b", "option sweep"},
		{"file:s?a;b", "invalid semicolon"},
		{"file:%zz", "invalid URL escape"},
	}
	for _, tt := range tests {
		if _, _, err := filestore.ParseURL(tt.url); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("ParseURL(%s) = %v, want %s", tt.url, err, tt.want)
		}
		if _, err := filestore.OpenURL(t.Context(), tt.url); err == nil {
			t.Errorf("OpenURL(%s) opened", tt.url)
		}
	}
}

func ExampleOpenURL() {
	dir, err := os.MkdirTemp("", "sessions")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()

	store, err := filestore.OpenURL(ctx, "file://"+filepath.ToSlash(dir)+"?sync=data&sweep=5m")
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	id := driver.ID{1}
	rec := driver.Record{User: "ann", Expires: time.Now().Add(time.Hour), Revision: driver.NewRevision(0)}
	fmt.Println(store.Save(ctx, id, rec, 0))
	rec, err = store.Load(ctx, id)
	fmt.Println(rec.User, err)
	// Output:
	// <nil>
	// ann <nil>
}

func ExampleOpen() {
	dir, err := os.MkdirTemp("", "sessions")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	store, err := filestore.Open(context.Background(), dir, filestore.Config{SweepEvery: 5 * time.Minute})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	fmt.Println(store.Describe().Durable)
	// Output: survives the end of every process; a power failure may lose the last 30 s
}
