package config

import (
	"bytes"
	"encoding"
	"errors"
	"io"
	"os"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// MaxSize is the largest file in bytes that is read.
const MaxSize = 64 << 10

// ReadFile reads a file. The error is only about reading it; what is wrong
// inside is in the document.
func ReadFile(path string) (*Document, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, err
	}
	return Parse(path, data), nil
}

// Parse reads the text of a file over the defaults.
//
// It is stricter than YAML: anchors, aliases, merge keys and tags are refused,
// so that what is read is what stands there. A field without a value is as if
// it was not there.
func Parse(name string, data []byte) *Document {
	d := New()
	d.file = name
	d.APIVersion = ""
	if len(data) > MaxSize {
		d.Add("", "larger than %d bytes", MaxSize)
		return d
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var root, second yaml.Node
	if err := dec.Decode(&root); err != nil && !errors.Is(err, io.EOF) {
		d.Add("", "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		return d
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		d.Add("", "holds more than one YAML document")
		return d
	}
	if len(root.Content) == 0 {
		d.Add("", "is empty")
		return d
	}
	d.decode("", root.Content[0], reflect.ValueOf(&d.Config).Elem())
	return d
}

// decode sets v to what n says. v is settable.
func (d *Document) decode(path string, n *yaml.Node, v reflect.Value) {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.Add(path, "anchors and aliases are not read; write the value out")
		return
	case n.Style&yaml.TaggedStyle != 0:
		d.Add(path, "tags such as %q are not read", n.Tag)
		return
	case n.ShortTag() == "!!null":
		return
	}
	if t, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if d.is(path, n, yaml.ScalarNode, "one value") {
			if err := t.UnmarshalText([]byte(n.Value)); err != nil {
				d.Add(path, "%s", err)
			}
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		if d.is(path, n, yaml.MappingNode, "a mapping of fields") {
			d.decodeStruct(path, n, v)
		}
	case reflect.Map:
		if d.is(path, n, yaml.MappingNode, "a mapping of names to values") {
			v.Set(reflect.MakeMap(v.Type()))
			d.pairs(path, n, func(path string, key, value *yaml.Node) {
				e := reflect.New(v.Type().Elem()).Elem()
				d.decode(path, value, e)
				v.SetMapIndex(reflect.ValueOf(key.Value), e)
			})
		}
	case reflect.Slice:
		if d.is(path, n, yaml.SequenceNode, "a list") {
			v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
			for i, e := range n.Content {
				path := path + "[" + strconv.Itoa(i) + "]"
				d.lines[path] = e.Line
				d.decode(path, e, v.Index(i))
			}
		}
	default:
		if d.is(path, n, yaml.ScalarNode, "one value") {
			d.decodeScalar(path, n, v)
		}
	}
}

func (d *Document) decodeStruct(path string, n *yaml.Node, v reflect.Value) {
	fields := map[string]reflect.Value{}
	var names []string
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		fields[name] = v.Field(i)
		names = append(names, name)
	}
	d.pairs(path, n, func(path string, key, value *yaml.Node) {
		if f, ok := fields[key.Value]; ok {
			d.decode(path, value, f)
		} else if near := nearest(key.Value, names); near != "" {
			d.Add(path, "unknown field; did you mean %q?", near)
		} else {
			d.Add(path, "unknown field; known here are %s", strings.Join(names, ", "))
		}
	})
}

// pairs calls f with the path, key and value of each pair of a mapping whose
// key is a plain word and is there once.
func (d *Document) pairs(path string, n *yaml.Node, f func(path string, key, value *yaml.Node)) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Anchor != "" || key.Style&yaml.TaggedStyle != 0 {
			d.Add(path, "the key on line %d is not a plain word", key.Line)
			continue
		}
		path := join(path, key.Value)
		if line, ok := d.lines[path]; ok {
			d.Add(path, "said twice, on lines %d and %d", line, key.Line)
			continue
		}
		d.lines[path] = key.Line
		f(path, key, value)
	}
}

func join(path, name string) string {
	if q := strconv.Quote(name); q[1:len(q)-1] != name {
		name = q
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

// decodeScalar takes the text as it was written, so a string that YAML would
// read as a number or a truth value needs no quotes.
func (d *Document) decodeScalar(path string, n *yaml.Node, v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(n.Value)
	case reflect.Bool:
		switch n.Value {
		case "true", "false":
			v.SetBool(n.Value == "true")
		default:
			d.Add(path, "%q is neither true nor false", n.Value)
		}
	case reflect.Int:
		i, err := strconv.ParseInt(n.Value, 10, v.Type().Bits())
		if err != nil {
			d.Add(path, "%q is not a whole number", n.Value)
		}
		v.SetInt(i)
	case reflect.Uint32, reflect.Uint64:
		u, err := strconv.ParseUint(n.Value, 10, v.Type().Bits())
		if err != nil {
			d.Add(path, "%q is not a whole number from 0 to %d", n.Value, uint64(1)<<v.Type().Bits()-1)
		}
		v.SetUint(u)
	}
}

func (d *Document) is(path string, n *yaml.Node, want yaml.Kind, what string) bool {
	if n.Kind != want {
		d.Add(path, "must be %s", what)
	}
	return n.Kind == want
}

// nearest returns the name that is at most two letters away from s, or "".
func nearest(s string, names []string) string {
	best, found := 3, ""
	for _, n := range names {
		if dist := distance(strings.ToLower(s), strings.ToLower(n)); dist < best && dist < len(n)-1 {
			best, found = dist, n
		}
	}
	return found
}

// distance is Levenshtein's. Names that differ much in length are far apart
// without a count, which bounds the work.
func distance(a, b string) int {
	if len(a)-len(b) > 2 || len(b)-len(a) > 2 {
		return 3
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
