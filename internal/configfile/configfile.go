// Package configfile reads a YAML file into a struct, strictly, and remembers where each setting came from, so that an
// error names the line and "config show" names the source.
//
//	c := settings{Listen: "127.0.0.1:8080"}                  // the defaults
//	layers, err := configfile.Read("holdfast.yaml", content, &c)
//	layers.Set("gateway.listen", configfile.Flag, "--listen") // after a flag has overwritten it
//	err = layers.At("gateway.listen", errors.New("port 99999 is not 1 to 65535"))
//
// A setting is a field with a yaml tag: a struct of settings, a list of such structs, or a value: string, bool, number,
// list of strings, or what implements encoding.TextUnmarshaler. Anchors, aliases, merge keys and several documents in
// one file are refused. All faults are reported at once.
package configfile

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/holdfast-sessions/holdfast/internal/storeurl"
)

// Source is where a setting's value came from.
type Source string

// The sources, from the weakest to the strongest.
const (
	Default     Source = "default"
	File        Source = "file"
	Environment Source = "environment"
	Flag        Source = "flag"
)

// An Error is one thing that is wrong in a file.
type Error struct {
	File         string
	Line, Column int    // from 1; 0 if it concerns a setting that the file does not have
	Path         string // of the setting, with dots: gateway.upstreams[0].url
	Err          error
}

func (e *Error) Error() string {
	at := []string{e.File, e.Path, e.Err.Error()}
	if e.Line > 0 {
		at[0] += fmt.Sprintf(":%d:%d", e.Line, e.Column)
	}
	return strings.Join(slices.DeleteFunc(at, func(s string) bool { return s == "" }), ": ")
}

func (e *Error) Unwrap() error { return e.Err }

// Layers says where settings came from.
type Layers struct {
	file      string
	positions map[string]position // of what the file holds, by path
	sources   map[string]Source   // of what is not default
	names     map[string]string   // of flags and variables
}

type position struct{ line, column int }

// Read lays the YAML text content over what the struct that into points to holds, which are the defaults. File is its
// name, for messages. Its error joins an *Error for each fault; into then holds what was not at fault.
func Read(file string, content []byte, into any) (*Layers, error) {
	l := &Layers{file: file, positions: make(map[string]position), sources: make(map[string]Source), names: make(map[string]string)}
	parsed, err := parser.ParseBytes(content, 0)
	if err != nil {
		return l, l.malformed(err)
	}
	docs := slices.DeleteFunc(parsed.Docs, func(d *ast.DocumentNode) bool { return d.Body == nil })
	switch len(docs) {
	case 0:
		return l, nil // an empty file sets nothing
	case 1:
	default:
		return l, l.at(docs[1].Body, "", errors.New("a second document (---): want one"))
	}
	d := decoder{layers: l}
	d.decode("", docs[0].Body, reflect.ValueOf(into).Elem())
	return l, errors.Join(d.errs...)
}

// malformed is for what the YAML parser found.
func (l *Layers) malformed(err error) error {
	e := &Error{File: l.file, Err: err}
	var found yaml.Error
	if errors.As(err, &found) {
		e.Err = errors.New(found.GetMessage())
		if t := found.GetToken(); t != nil && t.Position != nil {
			e.Line, e.Column = t.Position.Line, t.Position.Column
		}
	}
	return e
}

func (l *Layers) at(n ast.Node, path string, err error) error {
	p := positionOf(n)
	return &Error{l.file, p.line, p.column, path, err}
}

func positionOf(n ast.Node) position {
	if v, ok := n.(*ast.MappingValueNode); ok {
		n = v.Key // its own token is the colon
	}
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 && !m.IsFlowStyle {
		n = m.Values[0].Key
	}
	t := n.GetToken()
	if t == nil || t.Position == nil {
		return position{}
	}
	return position{t.Position.Line, t.Position.Column}
}

// At returns err as an *Error with the position of the setting path, or of the one that it belongs to if the file does
// not have it. If the value is from elsewhere, the error begins with the name of the flag or variable.
func (l *Layers) At(path string, err error) error {
	e := &Error{File: l.file, Path: path, Err: err}
	for ; ; path = parent(path) {
		if name, ok := l.names[path]; ok {
			return fmt.Errorf("%s: %w", name, err)
		}
		if p, ok := l.positions[path]; ok {
			e.Line, e.Column = p.line, p.column
			return e
		}
		if path == "" {
			return e
		}
	}
}

// parent is "a.b" for "a.b.c" and "a.b[1]", and "" for "a".
func parent(path string) string { return path[:max(0, strings.LastIndexAny(path, ".["))] }

// HasFile reports whether the settings are from a file, at least in part.
func (l *Layers) HasFile() bool { return l.file != "" }

// Set notes that a setting now has its value from elsewhere than the file: from a flag or variable of the given name.
func (l *Layers) Set(path string, s Source, name string) {
	l.sources[path] = s
	l.names[path] = name
}

// Source returns where the value of a setting came from.
func (l *Layers) Source(path string) Source {
	for ; path != ""; path = parent(path) {
		if s, ok := l.sources[path]; ok {
			return s
		}
	}
	return Default
}

type decoder struct {
	layers *Layers
	errs   []error
}

func (d *decoder) bad(n ast.Node, path, format string, args ...any) {
	d.errs = append(d.errs, d.layers.at(n, path, fmt.Errorf(format, args...)))
}

func (d *decoder) decode(path string, n ast.Node, v reflect.Value) {
	d.layers.positions[path] = positionOf(n)
	switch n.(type) {
	case *ast.NullNode: // "key:" without a value leaves the default
		return
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		d.bad(n, path, "anchors, aliases and tags are not supported: write the value out")
		return
	}
	switch {
	case isGroup(v.Type()):
		d.group(path, n, v)
	case v.Kind() == reflect.Slice && isGroup(v.Type().Elem()):
		d.list(path, n, v)
	default:
		d.value(path, n, v)
	}
}

// isGroup reports whether t holds settings, rather than being the value of one.
func isGroup(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func (d *decoder) group(path string, n ast.Node, v reflect.Value) {
	var pairs []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		pairs = n.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{n}
	default:
		d.bad(n, path, "want settings of the form key: value (%s)", strings.Join(keys(v.Type()), ", "))
		return
	}
	seen := make(map[string]bool)
	for _, pair := range pairs {
		if _, merge := pair.Key.(*ast.MergeKeyNode); merge {
			d.bad(pair, path, "merge keys (<<) are not supported: write the settings out")
			continue
		}
		key := pair.Key.GetToken().Value
		field, ok := fieldOf(v, key)
		switch at := join(path, key); {
		case !ok:
			known := keys(v.Type())
			d.bad(pair, path, "unknown key %q, did you mean %q? (want %s)", key, storeurl.Nearest(key, known), strings.Join(known, ", "))
		case seen[key]: // the parser finds most of these first
			d.bad(pair, at, "given twice")
		default:
			d.decode(at, pair.Value, field)
			d.layers.positions[at] = positionOf(pair)
		}
		seen[key] = true
	}
}

func (d *decoder) list(path string, n ast.Node, v reflect.Value) {
	items, ok := n.(*ast.SequenceNode)
	if !ok {
		d.bad(n, path, "want a list, each item on a line of its own that begins with - ")
		return
	}
	d.layers.sources[path] = File
	v.Set(reflect.MakeSlice(v.Type(), len(items.Values), len(items.Values)))
	for i, item := range items.Values {
		d.decode(fmt.Sprintf("%s[%d]", path, i), item, v.Index(i))
	}
}

func (d *decoder) value(path string, n ast.Node, v reflect.Value) {
	items := []ast.Node{n} // one value stands for a list of one
	switch n := n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		d.bad(n, path, "has no keys below it: want a value")
		return
	case *ast.SequenceNode:
		if v.Kind() != reflect.Slice {
			d.bad(n, path, "want one value, not a list")
			return
		}
		items = n.Values
	}
	d.layers.sources[path] = File
	fresh := reflect.New(v.Type()).Elem()
	for i, item := range items {
		into := fresh
		if v.Kind() == reflect.Slice {
			fresh.Set(reflect.Append(fresh, reflect.Zero(v.Type().Elem())))
			into = fresh.Index(i)
		}
		text, err := text(item)
		if err == nil {
			err = set(into, text)
		}
		if err != nil {
			d.bad(item, path, "%w", err)
			return
		}
	}
	v.Set(fresh)
}

// text returns a value as it was written, so that 1 may be a name, 1.5 is no whole number, and yes is no bool.
func text(n ast.Node) (string, error) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, nil
	case *ast.LiteralNode:
		return n.Value.Value, nil
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, nil
	}
	return "", errors.New("want a word or a number")
}

func set(v reflect.Value, text string) error {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		if text != "true" && text != "false" {
			return errors.New("want true or false")
		}
		v.SetBool(text == "true")
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return errors.New("want a whole number")
		}
		v.SetInt(n)
	case reflect.Float64:
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
			return errors.New("want a number")
		}
		v.SetFloat(f)
	default:
		panic("configfile: no setting can be a " + v.Type().String())
	}
	return nil
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// name returns the key of a field, or "" if it is not a setting.
func name(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return key
}

func keys(t reflect.Type) (all []string) {
	for i := range t.NumField() {
		if key := name(t.Field(i)); key != "" {
			all = append(all, key)
		}
	}
	return all
}

func fieldOf(v reflect.Value, key string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if name(v.Type().Field(i)) == key && key != "" {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// Print writes the settings in *from as a YAML file, with the source of each value beside it.
func (l *Layers) Print(w io.Writer, from any) error {
	p := printer{w: w, note: func(path string, _ reflect.StructField) string { return l.origin(path) }}
	p.group("", "", reflect.ValueOf(from).Elem())
	return p.err
}

type printer struct {
	w    io.Writer
	note func(path string, f reflect.StructField) string // to stand beside a setting
	err  error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

// group writes the fields of v. What stands before the first key is first; before the others, spaces.
func (p *printer) group(path, first string, v reflect.Value) {
	indent := strings.Repeat(" ", len(first))
	for i := range v.NumField() {
		tag := v.Type().Field(i)
		key := name(tag)
		if key == "" {
			continue
		}
		field, at := v.Field(i), join(path, key)
		p.printf("%s%s:", first, key)
		first = indent
		note := p.note(at, tag)
		if note != "" {
			note = " # " + note
		}
		switch {
		case isGroup(field.Type()):
			p.printf("\n")
			p.group(at, indent+"  ", field)
		case field.Kind() == reflect.Slice && isGroup(field.Type().Elem()) && field.Len() > 0:
			p.printf("%s\n", note)
			for i := range field.Len() {
				p.group(fmt.Sprintf("%s[%d]", at, i), indent+"  - ", field.Index(i))
			}
		default:
			p.printf(" %s%s\n", p.text(field), note)
		}
	}
}

// origin is the source of a setting, with the line if that is the file.
func (l *Layers) origin(path string) string {
	s := l.Source(path)
	if p, ok := l.positions[path]; ok && s == File {
		return fmt.Sprintf("%s:%d", l.file, p.line)
	}
	if _, ok := l.positions[path]; !ok && s == File {
		return string(Default) // in a list from the file, but not there
	}
	for ; path != ""; path = parent(path) {
		if name, ok := l.names[path]; ok {
			return name
		}
	}
	return string(s)
}

func (p *printer) text(v reflect.Value) string {
	if t, ok := v.Interface().(encoding.TextMarshaler); ok {
		b, err := t.MarshalText()
		p.err = errors.Join(p.err, err)
		return quote(string(b))
	}
	switch v.Kind() {
	case reflect.Slice:
		items := make([]string, v.Len())
		for i := range items {
			items[i] = p.text(v.Index(i))
		}
		return "[" + strings.Join(items, ", ") + "]"
	case reflect.String:
		return quote(v.String())
	}
	return fmt.Sprint(v.Interface())
}

// plain are words that need no quotes in YAML wherever they stand. (A number is read as it was written, too.)
var plain = regexp.MustCompile(`^[A-Za-z0-9/][A-Za-z0-9/._-]*(:[A-Za-z0-9/][A-Za-z0-9/._-]*)*$`)

// quote writes a word. In double quotes YAML knows what JSON does.
func quote(s string) string {
	switch strings.ToLower(s) {
	case "true", "false", "null", "yes", "no", "on", "off", "y", "n":
	default:
		if plain.MatchString(s) {
			return s
		}
	}
	b, _ := json.Marshal(s) // of a string: no error
	return string(b)
}

func settingAt(of any, path string) reflect.Value {
	v := reflect.ValueOf(of).Elem()
	for key := range strings.SplitSeq(path, ".") {
		field, ok := fieldOf(v, key)
		if !ok {
			panic("configfile: no setting " + path)
		}
		v = field
	}
	return v
}

// Value returns the value of a setting.
func Value(of any, path string) any { return settingAt(of, path).Interface() }

// Assign gives a setting a value: a bool, a text as in the file, or a list of texts.
func Assign(into any, path string, value any) error {
	v := settingAt(into, path)
	texts, ok := value.([]string)
	if !ok {
		texts = []string{fmt.Sprint(value)}
	}
	if v.Kind() != reflect.Slice {
		return set(v, texts[len(texts)-1])
	}
	fresh := reflect.MakeSlice(v.Type(), len(texts), len(texts))
	for i, text := range texts {
		if err := set(fresh.Index(i), text); err != nil {
			return err
		}
	}
	v.Set(fresh)
	return nil
}

// Describe writes the settings in *from as a YAML file to begin with. Beside a setting stands what its tag "help" says.
func Describe(w io.Writer, from any) error {
	p := printer{w: w, note: func(_ string, f reflect.StructField) string { return f.Tag.Get("help") }}
	p.group("", "", reflect.ValueOf(from).Elem())
	return p.err
}
