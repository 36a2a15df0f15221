import 'package:lib_mlx/lib_mlx.dart';
import 'package:test/test.dart';

void main() {
  test('a configuration has the header\'s keys, and only those that are set', () {
    const config = LoadConfig(
      modelPath: 'm',
      cpuWeights: CpuWeights.quantized,
      isolation: Isolation.none,
      kvBits: 8,
      generation: GenerationDefaults(topK: 5),
    );
    expect(config.toJson(), {
      'model_path': 'm',
      'cpu_weights': 'quantized',
      'isolation': 'none',
      'kv_bits': 8,
      'generation': {'top_k': 5},
    });
  });

  test('durations are seconds; further models and profiles are objects', () {
    const config = ServerConfig(
      keepAlive: Duration(milliseconds: 2500),
      models: [
        ServedModelConfig(modelPath: 'm', keepAlive: Duration(seconds: -1)),
      ],
      profiles: {'myOwn': Profile(maxTokens: 3)},
      suspendedRequests: SuspendedRequests.fail,
    );
    expect(config.toJson(), {
      'keep_alive': 2.5,
      'models': [
        {'model_path': 'm', 'keep_alive': -1.0},
      ],
      'profiles': {
        'myOwn': {'max_tokens': 3},
      },
      'suspended_requests': 'fail',
    });
  });

  test('states, codes and keys that are new do not keep a status from being read',
      () {
    final status = Status.fromJson({
      'model': {
        'status': 'dreaming',
        'model_id': 'm',
        'model_path': '/m',
        'progress': 1,
        'stage': '',
        'error': {'code': 'engine_bored', 'message': 'm', 'hint': ''},
        'colour': 'red',
      },
      'server': {'status': 'stopped', 'base_url': null},
    });
    expect(status.model.state, 'dreaming');
    expect(status.model.error?.code, 'engine_bored');
    expect(status.server.baseUrl, isNull);
  });
}
