package configfile_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/holdfast-sessions/holdfast/internal/configfile"
)

type duration time.Duration

func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return errors.New("want a time such as 30s")
	}
	*d = duration(v)
	return nil
}

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

type settings struct {
	Name   string   `yaml:"name"`
	Wait   duration `yaml:"wait"`
	Names  []string `yaml:"names"`
	Count  int      `yaml:"count"`
	Factor float64  `yaml:"factor"`
	On     bool     `yaml:"on"`
	Inner  struct {
		Port int `yaml:"port"`
	} `yaml:"inner"`
	Items  []item `yaml:"items"`
	Secret string // no setting
}

type item struct {
	ID     string `yaml:"id"`
	Weight int    `yaml:"weight"`
}

func TestRead(t *testing.T) {
	got := settings{Name: "default", Count: 7, Wait: duration(time.Second)}
	layers, err := configfile.Read("f.yaml", []byte(`
# comment
name: "a b"
wait: 1m30s
names: one
factor: 2
on: true
inner:
  port: 80
items:
  - id: x
  - {id: 7, weight: 3}
`), &got)
	if err != nil {
		t.Fatal(err)
	}
	want := settings{
		Name: "a b", Wait: duration(90 * time.Second), Names: []string{"one"}, Count: 7, Factor: 2, On: true,
		Items: []item{{ID: "x"}, {ID: "7", Weight: 3}},
	}
	want.Inner.Port = 80
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings differ (-want +got):\n%s", diff)
	}
	got.Count = 8
	layers.Set("count", configfile.Flag, "--count")
	var b strings.Builder
	if err := layers.Print(&b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(`name: "a b" # f.yaml:3
wait: 1m30s # f.yaml:4
names: [one] # f.yaml:5
count: 8 # --count
factor: 2 # f.yaml:6
on: true # f.yaml:7
inner:
  port: 80 # f.yaml:9
items: # f.yaml:10
  - id: x # f.yaml:11
    weight: 0 # default
  - id: 7 # f.yaml:12
    weight: 3 # f.yaml:12
`, b.String()); diff != "" {
		t.Errorf("printed (-want +got):\n%s", diff)
	}
	var again settings
	if _, err := configfile.Read("printed", []byte(b.String()), &again); err != nil || !cmp.Equal(got, again) {
		t.Errorf("what was printed reads as %+v, %v", again, err)
	}
	for path, want := range map[string]string{
		"inner.port":      "f.yaml:9:3: inner.port: wrong",
		"items[1].weight": "f.yaml:12:13: items[1].weight: wrong",
		"items[0].weight": "f.yaml:11:5: items[0].weight: wrong", // its item
		"factor":          "f.yaml:6:1: factor: wrong",
		"missing":         "f.yaml:3:1: missing: wrong", // the file
		"count":           "--count: wrong",
	} {
		if err := layers.At(path, errors.New("wrong")); err.Error() != want {
			t.Errorf("At(%s) = %v, want %s", path, err, want)
		}
	}
}

func TestReadNothing(t *testing.T) {
	for _, content := range []string{"", "# nothing\n", "---\n", "name:\n"} {
		got := settings{Name: "kept"}
		if layers, err := configfile.Read("f", []byte(content), &got); err != nil || got.Name != "kept" || layers.Source("name") != configfile.Default {
			t.Errorf("Read(%q): %v, name %q from %s", content, err, got.Name, layers.Source("name"))
		}
	}
}

// Every fault is named with its line and column, and all of them at once.
func TestReadFaults(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"unknown", "nam: x\n", `f:1:1: unknown key "nam", did you mean "name"? (want name, wait, names, count, factor, on, inner, items)`},
		{"unknown within", "inner:\n  prt: 1\n", `f:2:3: inner: unknown key "prt", did you mean "port"? (want port)`},
		{"unknown within an item", "items:\n- id: a\n  wait: 1\n", `f:3:3: items[0]: unknown key "wait", did you mean "id"? (want id, weight)`},
		{"type", "count: many\n", "f:1:8: count: want a whole number"},
		{"fraction", "count: 1.5\n", "f:1:8: count: want a whole number"},
		{"bool", "on: maybe\n", "f:1:5: on: want true or false"},
		{"text", "wait: 5 minutes\n", "f:1:7: wait: want a time such as 30s"},
		{"list for one", "name: [a]\n", "f:1:7: name: want one value, not a list"},
		{"one for group", "inner: 3\n", "f:1:8: inner: want settings of the form key: value (port)"},
		{"one for items", "items: 3\n", "f:1:8: items: want a list, each item on a line of its own that begins with - "},
		{"group for one", "count:\n  x: 1\n", "f:2:3: count: has no keys below it: want a value"},
		{"two", "count: x\nname: ok\ninner: 1\n", "f:1:8: count: want a whole number\nf:3:8: inner: want settings of the form key: value (port)"},
		{"twice", "name: a\nname: b\n", `f:2:1: mapping key "name" already defined at [1:1]`},
		{"tab", "inner:\n\tport: 1\n", "f:2:1: found character '\t' that cannot start any token"},
		{"anchor", "name: &a x\n", "f:1:7: name: anchors, aliases and tags are not supported: write the value out"},
		{"merge", "<<: {name: x}\n", "f:1:1: merge keys (<<) are not supported: write the settings out"},
		{"documents", "name: x\n---\nname: y\n", "f:3:1: a second document (---): want one"},
		{"not a mapping", "- x\n", "f:1:1: want settings of the form key: value (name, wait, names, count, factor, on, inner, items)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got settings
			if _, err := configfile.Read("f", []byte(tc.in), &got); err == nil || err.Error() != tc.want {
				t.Errorf("Read(%q):\n got %v\nwant %s", tc.in, err, tc.want)
			}
		})
	}
}

// What was read can be printed, and reads as the same again.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		"name: a\nwait: 3s\n", "items:\n  - {id: a, weight: 1}\n", "names: [a, 'b c', \"d\\n\"]\nfactor: .5", "name: |\n  x\n  y\n",
		"inner: {port: 0x1F}\n", "? name\n: x\n", "&a : *a\n", "name: !!binary eA==\n", "\xff", "items: [,]", "name: '#'",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content string) {
		var got, again settings
		layers, err := configfile.Read("f", []byte(content), &got)
		if err != nil {
			return
		}
		var b strings.Builder
		if err := layers.Print(&b, &got); err != nil {
			t.Fatal(err)
		}
		if _, err := configfile.Read("printed", []byte(b.String()), &again); err != nil {
			t.Fatalf("%q prints as\n%s\nwhich is refused: %v", content, b.String(), err)
		}
		if !cmp.Equal(got, again, cmpopts.EquateEmpty()) {
			t.Fatalf("%q prints as\n%s\nwhich reads as another: %s", content, b.String(), cmp.Diff(got, again))
		}
	})
}
